"""Direct logit attribution of an SAE's features: what is split, and how the parts are reported."""

from typing import Annotated

from pydantic import Field

from services.contracts.base import CatalogueId, Contract
from services.contracts.direct_logit_terms import DirectLogitTerms
from services.contracts.features import FeatureEffect
from services.contracts.site import SiteName
from services.contracts.tensor import ScalarStatistic


class FeatureContribution(Contract):
    """What one feature writes straight into the metric: f · d through the final norm at the run's own scale.

    `removed` is its exact check: the metric's change when f · d is taken out of the last residual stream, with the norm
    at its own new scale; `removed_at_held_scale` with the run's scale, which is −contribution to rounding.
    """

    index: int
    activation: ScalarStatistic
    contribution: ScalarStatistic
    removed: ScalarStatistic
    removed_at_held_scale: ScalarStatistic


class SplitExample(Contract):
    """One example's split. Over the norm threshold nothing is encoded: all of the site is in `over_norm`."""

    over_norm: bool
    sum_of_terms: float
    gap: Annotated[float, Field(description="|metric − sum of terms|, at most 1e-4 of the sum of their magnitudes.")]
    features: Annotated[tuple[float, ...] | None, Field(description="The listed features' own contributions here.")] = (
        None
    )


class FeatureSplit(Contract):
    """The activation x = Σ f d + b_dec + ε at an SAE's site and the metric's position, as logits in its direction.

    `features` are those of largest |mean contribution|, largest first; `other_features` all others together.
    `over_norm` is x as a whole, of examples whose token is over the SAE's norm threshold. `outside` are the terms of
    what is not in x, zeros in the place of what is: of a residual stream, the layers behind it. All of them add up to
    the metric.
    """

    sae: CatalogueId
    site: SiteName
    layer: int
    features: tuple[FeatureContribution, ...]
    active: Annotated[int, Field(description="Features that fire at the metric's position of some example.")]
    other_features: ScalarStatistic
    b_dec: ScalarStatistic
    error: ScalarStatistic
    over_norm: ScalarStatistic
    outside: DirectLogitTerms
    examples: tuple[SplitExample, ...]
    promoted_logits: tuple[FeatureEffect, ...] = ()
