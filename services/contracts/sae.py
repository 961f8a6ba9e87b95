"""The facts of a served sparse autoencoder."""

from typing import Annotated, Any, Literal

from pydantic import Field

from services.contracts.base import CatalogueId, Contract
from services.contracts.site import SiteName


class IndexFacts(Contract):
    """Over what an SAE was indexed. `tokens_over_norm` counts the tokens over its norm threshold."""

    tokens: int
    tokens_over_norm: int
    documents: int
    corpus: Annotated[str, Field(description="Where the text comes from, and under which licences.")]
    corpus_sha256: str
    sae_sha256: Annotated[str, Field(description="Of the weights file that was indexed.")]
    sha256: Annotated[str, Field(description="Of the index file.")]


Architecture = Literal[
    "topk",
    "standard",
    "jumprelu",
    "gated",
    "transcoder",
    "skip_transcoder",
    "jumprelu_transcoder",
    "jumprelu_skip_transcoder",
]
"""By SAELens' names."""


class SaeOutput(Contract):
    """Where a transcoder writes, and how wide. `skip`: a linear map of what it reads is added to it."""

    site: SiteName
    layer: int
    width: int
    hook_name: Annotated[str, Field(description="By TransformerLens' name.")]
    skip: bool


class SaeFacts(Contract):
    """What a client may rely on: the site it reads, its width, and its conventions."""

    id: CatalogueId
    model: CatalogueId
    architecture: Architecture
    site: SiteName
    layer: int
    d_model: int = Field(description="The width of what it reads: all heads side by side at `z`.")
    mlp_norm: bool = Field(
        default=False, description="Whether it reads its site through the norm before the layer's MLP, as the MLP does."
    )
    output: SaeOutput | None = Field(
        default=None, description="Where a transcoder writes; null for an SAE, which rebuilds what it reads."
    )
    features: int = Field(description="The width of the dictionary.")
    k: int | None = Field(description="Features kept per token, for TopK.")
    bos: bool | None = Field(description="Whether it was trained on prompts with BOS; null if unknown.")
    norm_threshold: float | None = Field(description="Tokens whose activation is longer are flagged and left alone.")
    hook_name: str | None = Field(default=None, description="The hook it was trained on, by TransformerLens' name.")
    apply_b_dec_to_input: bool | None = Field(default=None, description="Whether b_dec is subtracted before encoding.")
    decoder_norms_folded: bool | None = Field(
        default=None, description="Whether decoder norms were folded into the weights, so that directions are unit."
    )
    normalize_activations: Literal["none", "expected_average_only_in", "constant_norm_rescale", "layer_norm"] | None = (
        Field(default=None, description="How each token is scaled before encoding, by SAELens' name.")
    )
    sha256: str = Field(description="Of the weights file.")
    config_sha256: str | None = Field(
        default=None,
        description="Of cfg.json, which holds the conventions; null for one prepared by an older lensd, which no job "
        "can use before it is prepared again.",
    )
    extras_sha256: str | None = Field(default=None, description="Of the mean activation's file; null without one.")
    license: str | None = None
    index: IndexFacts | None = Field(
        default=None, description="Over what its features were indexed; null if they were not."
    )
    card: dict[str, Any] = Field(default={}, description="Its card: every figure measured on held-out documents.")

    @property
    def scales_tokens(self) -> bool:
        """Whether each token is scaled by its own size, so that directions are not in the activations' units."""
        return self.normalize_activations in ("constant_norm_rescale", "layer_norm") and self.output is None

    @property
    def rebuilds(self) -> tuple[SiteName, int]:
        """The site and the layer of what its features add up to."""
        return (self.site, self.layer) if self.output is None else (self.output.site, self.output.layer)
