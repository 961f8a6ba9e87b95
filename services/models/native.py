"""TransformerLens' own small transformer as a model source: what a folder's config.json may say, and the module.

For models trained from nothing, attention-only ones above all, which no Hugging Face architecture describes. The module
speaks to the engine as transformers' models do, except that its attention keeps no keys and values: its rows run as
whole forward passes.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, ValidationError, model_validator
from safetensors.torch import load_file
from torch import Tensor
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.model_bridge.sources.native import NativeModel

from services.contracts.base import Contract
from services.contracts.errors import ErrorCode, JobFailed
from services.models.config_file import CONFIG_FILE, config_fields

ARCHITECTURE = "TransformerLensNative"

_Size = Annotated[int, Field(gt=0)]


class NativeConfig(Contract):
    """The shape of a native model, by TransformerLens' names; blocks are pre-norm, with biases, and untied.

    The properties answer by the names of transformers' configurations.
    """

    model_type: Literal["transformer_lens_native"] = "transformer_lens_native"
    n_layers: _Size
    n_heads: _Size
    d_model: _Size
    d_head: _Size
    n_ctx: _Size
    d_vocab: _Size
    attn_only: bool = False
    d_mlp: _Size | None = None
    act_fn: Literal["gelu", "gelu_new", "relu", "silu"] | None = None
    normalization_type: Literal["LN", "RMS"] = "LN"
    positional_embedding_type: Literal["standard", "rotary"] = "standard"
    bos_token_id: int | None = None

    @model_validator(mode="after")
    def _mlp_is_described(self) -> "NativeConfig":
        if self.attn_only != (self.d_mlp is None) or self.attn_only != (self.act_fn is None):
            raise ValueError("give d_mlp and act_fn, or attn_only = true and neither")
        return self

    @property
    def num_hidden_layers(self) -> int:
        return self.n_layers

    @property
    def num_attention_heads(self) -> int:
        return self.n_heads

    @property
    def hidden_size(self) -> int:
        return self.d_model

    @property
    def head_dim(self) -> int:
        return self.d_head

    @property
    def vocab_size(self) -> int:
        return self.d_vocab

    @property
    def max_position_embeddings(self) -> int:
        return self.n_ctx

    def for_bridge(self) -> TransformerBridgeConfig:
        fields = self.model_dump(exclude={"model_type", "bos_token_id"}, exclude_none=True)
        return TransformerBridgeConfig.from_dict({**fields, "architecture": ARCHITECTURE})


class NativeForCausalLM(NativeModel):
    """Called and answering as transformers' causal language models are, and do."""

    def __init__(self, config: NativeConfig) -> None:
        super().__init__(config.for_bridge())
        self.config = config

    def forward(
        self,
        input_ids: Int[Tensor, "row position"],
        *,
        logits_to_keep: int | Tensor = 0,
        use_cache: bool = False,
        past_key_values: Any = None,
    ) -> SimpleNamespace:
        """Logits [row, kept, vocabulary] as `.logits`, of the positions that `logits_to_keep` names, or of all.

        A cache is let in, and left as it is.
        """
        del use_cache, past_key_values
        logits: Float[Tensor, "row position vocabulary"] = super().forward(input_ids)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return SimpleNamespace(logits=logits[:, kept])


def is_native(folder: Path) -> bool:
    """Whether the folder's config.json describes a native model; raises JobFailed when it cannot be read."""
    return bool(config_fields(folder).get("model_type") == NativeConfig.model_fields["model_type"].default)


def read_native_config(folder: Path) -> NativeConfig:
    """The folder's config.json; raises JobFailed (`model_unavailable`), naming the field that is unknown or wrong."""
    try:
        return NativeConfig.model_validate(config_fields(folder))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "its fields"
        message = f"the model's {CONFIG_FILE} does not describe a native model: {where:.100}: {first['msg']}"
        raise JobFailed(ErrorCode.MODEL_UNAVAILABLE, message) from error


def build_native(config: NativeConfig, weights: Path, *, dtype: torch.dtype) -> NativeForCausalLM:
    """The module with the weights of a safetensors file, whose names must be exactly the module's own.

    Raises JobFailed (`model_unavailable`) for other names or shapes, and safetensors' error for a damaged file.
    """
    module = NativeForCausalLM(config)
    tensors = load_file(weights)
    try:
        module.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        message = (
            f"the model's weights are not those that its {CONFIG_FILE} describes: {' '.join(str(error).split()):.300}"
        )
        raise JobFailed(ErrorCode.MODEL_UNAVAILABLE, message) from error
    module.to(dtype)
    return module
