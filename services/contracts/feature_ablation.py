"""What ablating features of an SAE takes, and what it answers."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from services.contracts.attribution_method import clean_gradient_violations
from services.contracts.base import CatalogueId, Contract, Position
from services.contracts.errors import ErrorCode, Violation
from services.contracts.feature_site import ChosenFeature, EstimateCheck, FeatureChoice, example_position_violations
from services.contracts.features import FeatureEffect
from services.contracts.inputs import Inputs
from services.contracts.metric import KlDivergence, Metric
from services.contracts.model import ModelFacts
from services.contracts.prompt import Prompt
from services.contracts.references import Over, averaged_over, over_violations
from services.contracts.result import PromptTokens, Result
from services.contracts.site import SiteName
from services.contracts.tensor import Estimate


class FeatureAblation(FeatureChoice):
    """Ablate features of an SAE, one a run: x + (f_source − f) d_i, the error ε left as it is.

    `zero` takes a feature out; `mean` sets it to its mean over `references`, at the same `position` of each or over
    `all` positions of all (as mean ablation has it; tokens over the SAE's norm threshold do not count). Such tokens of
    an example, and positions at which no reference counts, are left untouched.
    """

    type: Literal["feature_ablation"]
    source: Literal["zero", "mean"] = "zero"
    references: Annotated[
        tuple[Prompt, ...], Field(max_length=1_000, description="Prompts whose features are averaged, for `mean`.")
    ] = ()
    over: Over | None = None
    positions: Annotated[
        tuple[Position, ...] | None,
        Field(min_length=1, max_length=4_096, description="Where features change; null is everywhere."),
    ] = None

    def further_prompts(self) -> tuple[Prompt, ...]:
        """The prompts at `/method/references`."""
        return self.references

    def estimates(self, metric: Metric) -> bool:
        """Whether there is a first-order estimate: at its clean run a divergence has no slope."""
        return not isinstance(metric, KlDivergence)

    def averaged_over(self, inputs: Inputs) -> Over | None:
        """What a mean is over, for these inputs."""
        return averaged_over(self.over, inputs) if self.source == "mean" else None

    def metric_violations(self, metric: Metric) -> Iterator[Violation]:
        """The strongest features by an estimate that is zero for all."""
        if self.top_features() and not self.estimates(metric):
            yield from clean_gradient_violations(metric, "name `features` without `top_k`, or use another metric")

    def violations(self, facts: ModelFacts, pointer: str) -> Iterator[Violation]:
        """A choice of no features; a mean over nothing, references without one."""
        del facts
        yield from self.choice_violations(pointer)
        if self.source == "mean" and not self.references:
            message = "a mean is taken over reference prompts: give `references`, or take the source zero"
            yield Violation(f"{pointer}/references", ErrorCode.INVALID_REQUEST, message)
        for name in ("references", "over"):
            if self.source == "zero" and getattr(self, name):
                message = f"zero takes nothing from other prompts: leave `{name}` out, or take the source mean"
                yield Violation(f"{pointer}/{name}", ErrorCode.INVALID_REQUEST, message)

    def input_violations(self, inputs: Inputs) -> Iterator[Violation]:
        """Positions that some example lacks, references whose positions do not correspond."""
        pointer = "/method/positions"
        yield from example_position_violations(self.positions, inputs, pointer, by_position=self.by_position)
        yield from over_violations(self.over, inputs)


class FeatureAblatedExample(Contract):
    """`left_out` are positions that stay untouched: over the SAE's norm threshold, or without any reference's mean."""

    tokens: PromptTokens
    baseline: Annotated[float, Field(description="The metric on the whole model.")]
    left_out: tuple[int, ...]
    effects: Estimate | None = None
    estimated: Estimate | None = None


class AllFeatures(Contract):
    """All features ablated together, ε left as it is: [position] where features change one position a run."""

    effects: Estimate
    estimated: Estimate | None


class FeatureAblationResult(Result):
    """`effects` = m(ablated) − m(whole) in the metric's units, [feature] or [feature, position]; `estimated` is their
    first-order estimate, (f_source − f) · (d_i · ∂m/∂x), null where the metric has no slope.

    `features` label the first axis: those given in their order, then the strongest by estimate.
    """

    kind: Literal["ablation"] = "ablation"
    method: Literal["feature_ablation"] = "feature_ablation"
    sae: CatalogueId
    site: SiteName
    layer: int
    source: Literal["zero", "mean"]
    over: Annotated[Over | None, Field(description="What a mean was taken over.")] = None
    features: tuple[ChosenFeature, ...]
    changed: Annotated[int, Field(description="Features that the ablation changes anywhere.")]
    positions: Annotated[tuple[int, ...] | None, Field(description="Labels of the axis `position`.")] = None
    examples: tuple[FeatureAblatedExample, ...]
    effects: Estimate
    estimated: Estimate | None
    together: AllFeatures
    check: EstimateCheck | None
    promoted_logits: tuple[FeatureEffect, ...] = ()
