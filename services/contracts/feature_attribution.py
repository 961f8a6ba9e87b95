"""What feature attribution takes, and what it answers (Marks et al. 2024, arXiv:2403.19647)."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from services.contracts.attribution_method import AttributionMethodBase, clean_gradient_violations
from services.contracts.attribution_patching import ExactCheck
from services.contracts.base import CatalogueId, Contract
from services.contracts.errors import ErrorCode, Violation
from services.contracts.feature_site import (
    TopFeatures,
    example_position_violations,
    pair_position_violations,
    sae_violations,
)
from services.contracts.inputs import Inputs
from services.contracts.metric import Metric
from services.contracts.model import ModelFacts
from services.contracts.quadrature import Quadrature, Steps
from services.contracts.result import PromptTokens
from services.contracts.sae import SaeFacts
from services.contracts.site import SiteName
from services.contracts.sweep import SweptPosition
from services.contracts.tensor import Estimate, ScalarStatistic


class FeatureAttribution(AttributionMethodBase):
    """What each feature of an SAE moves the metric by: (f_source − f_base) · (d_i · ∂m/∂x), ε as a node of its own.

    `source` says where features come from: `other_run` works on `pairs` (denoising puts the clean run's features into
    the corrupted run, noising the reverse), `zero` on `examples`. `gradient_x_activation` takes the gradient at the
    base run; `integrated_gradients` its mean along the straight line from the base run's activation to the source's,
    on which features and error move together. Tokens over the SAE's norm threshold in either run are left untouched.
    """

    type: Literal["feature_attribution"]
    sae: CatalogueId
    source: Literal["other_run", "zero"] = "other_run"
    mode: Literal["denoising", "noising"] = "denoising"
    estimate: Literal["gradient_x_activation", "integrated_gradients"] = "integrated_gradients"
    steps: Steps = 10
    quadrature: Quadrature = "midpoint"
    top_k: TopFeatures = 20
    positions: Annotated[
        tuple[SweptPosition, ...] | None,
        Field(min_length=1, max_length=4_096, description="Where features change; null is everywhere."),
    ] = None
    by_position: Annotated[
        bool,
        Field(
            description="Also the top features' and the error's effects by position; `check` then counts so many cells "
            "of these too, each patched at its position alone."
        ),
    ] = False
    check: ExactCheck = ExactCheck()

    def takes_pairs(self) -> bool:
        return self.source == "other_run"

    def sae_id(self) -> CatalogueId | None:
        return self.sae

    def writes_features(self) -> bool:
        return True

    def sae_violations(self, sae: SaeFacts) -> Iterator[Violation]:
        yield from sae_violations(sae, "/method/sae")

    def metric_violations(self, metric: Metric) -> Iterator[Violation]:
        """The first-order estimate at the clean run itself."""
        if self.estimate == "gradient_x_activation" and (self.source == "zero" or self.mode == "noising"):
            yield from clean_gradient_violations(metric, "use integrated_gradients, or another metric")

    def violations(self, facts: ModelFacts) -> Iterator[Violation]:
        """A trapezoid without two ends."""
        del facts
        if self.estimate == "integrated_gradients" and self.quadrature == "trapezoid" and self.steps < 2:
            message = "a trapezoid has two ends: take at least 2 steps, or another quadrature"
            yield Violation("/method/steps", ErrorCode.INVALID_REQUEST, message)

    def input_violations(self, inputs: Inputs) -> Iterator[Violation]:
        found = pair_position_violations if inputs.pairs else example_position_violations
        yield from found(self.positions, inputs, "/method/positions", by_position=self.by_position)


class AttributedFeature(Contract):
    """A feature's estimated effect, summed over positions, in the metric's units."""

    index: int
    effect: ScalarStatistic


class CheckedEffect(Contract):
    """An estimate and the same change made exactly; `gap` = exact − estimated."""

    estimated: ScalarStatistic
    exact: ScalarStatistic
    gap: ScalarStatistic


class FeatureRun(Contract):
    """One pair or example: `tokens` of the base run, the one that is changed; `metric` is its, `source_metric` that of
    the run which features come from. `left_out` are positions over the SAE's norm threshold."""

    tokens: PromptTokens
    source_tokens: PromptTokens | None
    metric: float
    source_metric: float | None
    left_out: tuple[int, ...]
    error: float
    sum: Annotated[float, Field(description="Of all features' estimates and the error's.")]
    exact: Annotated[float, Field(description="m(site replaced) − m(base): what the sum estimates.")]
    features: Annotated[tuple[float, ...] | None, Field(description="The top features' own effects here.")] = None


class CheckedFeature(Contract):
    """One feature patched exactly, alone: x + (f_source − f_base) d_i at its positions; means over the inputs."""

    index: int
    chosen: Literal["top", "sampled"]
    estimated: float
    exact: float


class FeatureCheck(Contract):
    """The estimates against exact patching of the top features and a seeded sample of the others that change."""

    rank_correlation: Annotated[float | None, Field(description="Spearman's; null where it is not defined.")]
    largest_error: Annotated[float, Field(description="max |estimated − exact|, in the metric's units.")]
    false_negatives: Annotated[
        int,
        Field(
            description="Sampled features whose exact effect is larger in magnitude than the smallest among the top, "
            "and than a thousandth of the largest that was found."
        ),
    ]
    cells: tuple[CheckedFeature, ...]


class CheckedCell(Contract):
    """One feature, or the error, patched exactly at one position alone; means over the inputs."""

    index: Annotated[int | None, Field(description="The feature's; null is the error ε.")]
    position: Annotated[int | str, Field(description="One of the outcome's `positions`.")]
    chosen: Literal["top", "sampled"]
    estimated: float
    exact: float


class PositionCheck(Contract):
    """The estimates by position, of the top features and of the error, against exact patching of the largest cells and
    a seeded sample of the others that change."""

    rank_correlation: Annotated[float | None, Field(description="Spearman's; null where it is not defined.")]
    largest_error: Annotated[float, Field(description="max |estimated − exact|, in the metric's units.")]
    false_negatives: Annotated[
        int,
        Field(
            description="Sampled cells whose exact effect is larger in magnitude than the smallest among the top, and "
            "than a thousandth of the largest that was found."
        ),
    ]
    cells: tuple[CheckedCell, ...]


class FeatureAttributionOutcome(Contract):
    """`features` are those of largest |mean effect|, largest first. `error` is ε's effect, `total` that of all features
    and ε together: its exact value replaces the whole site by the source's, and its gap is what the estimate misses.

    `by_position` [feature, position] has the top features, `error_by_position` the error; `positions` label them, and
    `check_by_position` has some of their cells patched exactly.
    """

    type: Literal["feature_attribution"] = "feature_attribution"
    site: SiteName
    layer: int
    source: Literal["other_run", "zero"]
    mode: Literal["denoising", "noising"] | None
    estimate: Literal["gradient_x_activation", "integrated_gradients"]
    steps: int | None
    quadrature: Quadrature | None
    features: tuple[AttributedFeature, ...]
    changed: Annotated[int, Field(description="Features that differ between base and source anywhere.")]
    error: CheckedEffect
    total: CheckedEffect
    positions: tuple[int | str, ...] | None = None
    by_position: Estimate | None = None
    error_by_position: Estimate | None = None
    check_by_position: PositionCheck | None = None
    runs: tuple[FeatureRun, ...]
    check: FeatureCheck
