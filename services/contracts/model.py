"""The facts of a served model: written once when it is prepared, read by the gateway without torch."""

from typing import Literal

from pydantic import Field

from services.contracts.base import CatalogueId, Contract
from services.contracts.site import SiteName


class SiteFacts(Contract):
    """Whether a site of this model can be read and written; if not, why and what to use instead."""

    name: SiteName
    readable: bool
    writable: bool
    reason: str | None = None


class ModelFacts(Contract):
    """What a client may rely on: sizes, sites, tokenizer, and where the weights came from."""

    id: CatalogueId
    name: str = Field(description="The model's own name, as its makers call it.")
    family: str = Field(description="The architecture, as its configuration's `model_type` names it.")
    revision: str
    source: Literal["gguf", "folder", "hugging_face", "native"]
    weights_sha256: str
    tokenizer_sha256: str
    license: str | None = None
    layers: int
    heads: int
    kv_heads: int
    d_model: int
    d_head: int
    d_mlp: int = Field(description="Neurons of one MLP; 0 in a model of attention alone.")
    vocabulary: int
    context: int
    bos_token_id: int | None
    prepends_bos: bool = Field(description="The tokenizer's own rule: whether text gets a BOS token.")
    has_chat_template: bool
    parallel_blocks: bool = Field(description="Attention and MLP read the same residual: there is no resid_mid.")
    post_norms: bool = Field(description="The outputs of attention and MLP are normalised before they are added.")
    logit_soft_cap: float | None
    sites: tuple[SiteFacts, ...]
    weight_bytes: int = Field(description="Bytes of the weights in float32.")
    token_layers_per_second: float = Field(
        description="How fast the machine that prepared the model runs it: positions through blocks per second."
    )


class LoadedModel(Contract):
    """Where a model is at the moment."""

    worker: str
    status: Literal["loading", "loaded"]


class ModelView(ModelFacts):
    """A model as the API shows it: its facts and the workers that hold it in memory."""

    loaded: tuple[LoadedModel, ...] = ()
