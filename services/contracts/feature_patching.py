"""What patching features of an SAE takes, and what it answers."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from services.contracts.attribution_method import clean_gradient_violations
from services.contracts.base import CatalogueId, Contract
from services.contracts.errors import Violation
from services.contracts.feature_site import ChosenFeature, EstimateCheck, FeatureChoice, pair_position_violations
from services.contracts.features import FeatureEffect
from services.contracts.inputs import Inputs
from services.contracts.metric import KlDivergence, Metric
from services.contracts.model import ModelFacts
from services.contracts.result import Baselines, PairTokens, Result
from services.contracts.site import SiteName
from services.contracts.sweep import SweptPosition
from services.contracts.tensor import Estimate


class FeaturePatching(FeatureChoice):
    """Patch features of an SAE, one a run: x + (f_source − f_base) d_i, the error ε held at the base run's.

    `denoising` puts the clean run's features into the corrupted run, `noising` the reverse. Beside them stand all
    features together, the error alone, and both, which replace the whole activation. Tokens over the SAE's norm
    threshold in either run are left untouched.
    """

    type: Literal["feature_patching"]
    mode: Literal["denoising", "noising"] = "denoising"
    positions: Annotated[
        tuple[SweptPosition, ...] | None,
        Field(min_length=1, max_length=4_096, description="Where features change; null is everywhere."),
    ] = None

    def estimates(self, metric: Metric) -> bool:
        """Whether there is a first-order estimate: at its clean run a divergence has no slope."""
        return not (self.mode == "noising" and isinstance(metric, KlDivergence))

    def metric_violations(self, metric: Metric) -> Iterator[Violation]:
        """The strongest features by an estimate that is zero for all."""
        if self.top_features() and not self.estimates(metric):
            yield from clean_gradient_violations(metric, "name `features` without `top_k`, or use another metric")

    def violations(self, facts: ModelFacts, pointer: str) -> Iterator[Violation]:
        """A choice of no features."""
        del facts
        yield from self.choice_violations(pointer)

    def input_violations(self, inputs: Inputs) -> Iterator[Violation]:
        """Positions that some pair lacks."""
        yield from pair_position_violations(self.positions, inputs, "/method/positions", by_position=self.by_position)


class PartEffect(Contract):
    """Effects of changing one part of the site: [position] where features change one position a run, else a number.

    `estimated` is the first-order estimate of `effects`.
    """

    effects: Estimate
    normalized: Estimate
    estimated: Estimate | None


class PatchedParts(Contract):
    """`features`: all of them together, ε held; `error`: ε alone; `both`: the source's whole activation."""

    features: PartEffect
    error: PartEffect
    both: PartEffect


class FeaturePatchedPair(Contract):
    """`left_out` are positions over the SAE's norm threshold in either run."""

    tokens: PairTokens
    differing_positions: tuple[int, ...]
    baselines: Baselines
    left_out: tuple[int, ...]
    effects: Estimate | None = None
    estimated: Estimate | None = None


class FeaturePatchingResult(Result):
    """`effects` = m(patched) − m(unpatched) in the metric's units, [feature] or [feature, position]; `normalized` =
    effect / (m(other) − m(unpatched)); `estimated` is the first-order estimate of `effects`, (f_source − f_base) ·
    (d_i · ∂m/∂x) at the base run, null where the metric has no slope there.

    `features` label the first axis: those given in their order, then the strongest by estimate.
    """

    kind: Literal["patching"] = "patching"
    method: Literal["feature_patching"] = "feature_patching"
    sae: CatalogueId
    site: SiteName
    layer: int
    mode: Literal["denoising", "noising"]
    features: tuple[ChosenFeature, ...]
    changed: Annotated[int, Field(description="Features that differ between base and source anywhere.")]
    positions: Annotated[tuple[int | str, ...] | None, Field(description="Labels of the axis `position`.")] = None
    pairs: tuple[FeaturePatchedPair, ...]
    effects: Estimate
    normalized: Estimate
    estimated: Estimate | None
    parts: PatchedParts
    check: EstimateCheck | None
    promoted_logits: tuple[FeatureEffect, ...] = ()
