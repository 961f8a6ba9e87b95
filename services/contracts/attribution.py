"""`attribution`: share the metric out among the model's parts."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from services.contracts.attribution_patching import AttributionPatching, AttributionPatchingOutcome
from services.contracts.base import CatalogueId
from services.contracts.direct_logit_attribution import DirectLogitAttribution, DirectLogitOutcome
from services.contracts.edge_attribution_patching import EdgeAttributionOutcome, EdgeAttributionPatching
from services.contracts.errors import ErrorCode, Violation
from services.contracts.feature_attribution import FeatureAttribution, FeatureAttributionOutcome
from services.contracts.gradient_x_input import GradientXInput, GradientXInputOutcome
from services.contracts.inputs import Inputs
from services.contracts.integrated_gradients import IntegratedGradients, IntegratedGradientsOutcome
from services.contracts.metric import LogitDiff, Metric
from services.contracts.model import ModelFacts
from services.contracts.prompt import Example, Pair
from services.contracts.result import Result
from services.contracts.sae import SaeFacts
from services.contracts.spec import Asked, Spec

AttributionMethod = Annotated[
    DirectLogitAttribution
    | GradientXInput
    | IntegratedGradients
    | AttributionPatching
    | EdgeAttributionPatching
    | FeatureAttribution,
    Field(discriminator="type"),
]
AttributionOutcome = Annotated[
    DirectLogitOutcome
    | GradientXInputOutcome
    | IntegratedGradientsOutcome
    | AttributionPatchingOutcome
    | EdgeAttributionOutcome
    | FeatureAttributionOutcome,
    Field(discriminator="type"),
]


class AttributionSpec(Spec):
    """Some methods take `examples`, others clean and corrupted `pairs`: exactly the one that the method takes."""

    kind: Literal["attribution"]
    method: AttributionMethod
    examples: Annotated[tuple[Example, ...], Field(max_length=1_000)] = ()
    pairs: Annotated[tuple[Pair, ...], Field(max_length=1_000)] = ()
    metric: Metric = LogitDiff()
    per_example: Annotated[bool, Field(description="Also report every example's or pair's own figures.")] = False

    def asked(self) -> Asked:
        return Asked(examples=self.examples, pairs=self.pairs, metric=self.metric)

    def sae_id(self) -> CatalogueId | None:
        return self.method.sae_id()

    def sae_pointer(self) -> str:
        return "/method/sae"

    def writes_features(self) -> bool:
        return self.method.writes_features()

    def sae_violations(self, sae: SaeFacts) -> Iterator[Violation]:
        yield from self.method.sae_violations(sae)

    def violations(self, facts: ModelFacts) -> Iterator[Violation]:
        """The wrong kind of input for the method, and what the method itself refuses."""
        takes, other = ("pairs", "examples") if self.method.takes_pairs() else ("examples", "pairs")
        if not getattr(self, takes):
            message = f"{self.method.type} works on `{takes}`: give at least one"
            yield Violation(f"/{takes}", ErrorCode.INVALID_REQUEST, message)
        if getattr(self, other):
            message = f"{self.method.type} works on `{takes}`, not on `{other}`: leave these out"
            yield Violation(f"/{other}", ErrorCode.INVALID_REQUEST, message)
        yield from self.method.metric_violations(self.metric)
        yield from self.method.violations(facts)

    def input_violations(self, inputs: Inputs) -> Iterator[Violation]:
        # Without inputs of its own kind, of which `violations` tells, there is nothing to hold the method against.
        if inputs.pairs if self.method.takes_pairs() else inputs.examples:
            yield from self.method.input_violations(inputs)


class AttributionResult(Result):
    kind: Literal["attribution"] = "attribution"
    attribution: AttributionOutcome
