"""What the feature index knows of one feature of an SAE: how often it fires, on what, and what it writes.

The index is made once over a corpus (`lensd-worker index-sae`) and read without torch.
"""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from services.contracts.base import CatalogueId, Contract
from services.contracts.features import PerTokenScale, PromotedToken
from services.contracts.sae import IndexFacts


class Histogram(Contract):
    """How often the feature's activation fell into each bin, over the tokens on which it fires.

    `edges` are counts + 1 activations, ascending; a bin holds its lower edge.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]


class FeatureContext(Contract):
    """A piece of a document around a token on which the feature fires; `activations` has one figure per token.

    `band`: `top` for the strongest, one per document, else the quantile of activation it was drawn from.
    """

    document: str
    source: str
    band: Literal["top", "upper", "middle", "lower"]
    position: Annotated[int, Field(description="Of the token with `activation`, within `tokens`.")]
    activation: float
    tokens: tuple[str, ...]
    activations: tuple[float, ...]


class NearFeature(Contract):
    """Another feature of the same SAE, and how near it is: a cosine of decoder rows, or a Jaccard index of firing."""

    index: int
    similarity: float


class FeatureLabel(Contract):
    """What somebody says a feature is. `shared`: by the operator, for every tenant; else the caller's own."""

    text: str
    author: Annotated[str | None, Field(description="Who or what said so: a person, or a model's name.")] = None
    method: Annotated[str | None, Field(description="How it was found: `manual`, `autointerp`, …")] = None
    shared: bool = False
    updated_at: datetime


class FeatureSummary(Contract):
    """One line of a list of features.

    `density` is the fraction of tokens within the norm threshold on which it fires; `mean_activation` is over those.
    """

    index: int
    density: float
    max_activation: float
    mean_activation: float
    promoted: tuple[PromotedToken, ...]
    example: Annotated[FeatureContext | None, Field(description="The strongest context; null for a dead feature.")]
    labels: tuple[FeatureLabel, ...] = ()


class FeatureCard(Contract):
    """Everything the index knows of one feature."""

    sae: CatalogueId
    index: int
    density: float
    max_activation: float
    mean_activation: float
    active_tokens: int
    histogram: Histogram
    contexts: tuple[FeatureContext, ...]
    promoted: tuple[PromotedToken, ...]
    suppressed: tuple[PromotedToken, ...]
    effects_per_token_scale: PerTokenScale = False
    nearest_by_decoder: tuple[NearFeature, ...]
    nearest_by_coactivation: tuple[NearFeature, ...]
    labels: tuple[FeatureLabel, ...] = ()
    corpus: IndexFacts
