"""The facts of a served sparse autoencoder."""

from typing import Any, Literal

from pydantic import Field

from services.contracts.base import CatalogueId, Contract
from services.contracts.site import SiteName


class SaeFacts(Contract):
    """What a client may rely on: the site it reads, its width, and its conventions."""

    id: CatalogueId
    model: CatalogueId
    architecture: Literal["topk", "standard", "jumprelu", "gated"]
    site: SiteName
    layer: int
    d_model: int
    features: int = Field(description="The width of the dictionary.")
    k: int | None = Field(description="Features kept per token, for TopK.")
    bos: bool | None = Field(description="Whether it was trained on prompts with BOS; null if unknown.")
    norm_threshold: float | None = Field(description="Tokens whose activation is longer are flagged and left alone.")
    sha256: str = Field(description="Of the weights file.")
    extras_sha256: str | None = Field(default=None, description="Of the mean activation's file; null without one.")
    license: str | None = None
    card: dict[str, Any] = Field(default={}, description="Its card: every figure measured on held-out documents.")
