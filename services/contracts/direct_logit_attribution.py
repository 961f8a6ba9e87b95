"""What direct logit attribution takes, and what it answers."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from services.contracts.attribution_method import AttributionMethodBase
from services.contracts.base import CatalogueId, Contract
from services.contracts.direct_logit_features import FeatureSplit
from services.contracts.direct_logit_terms import DirectLogitTerms
from services.contracts.errors import ErrorCode, Violation
from services.contracts.feature_site import PromotedLogits, TopFeatures, sae_violations
from services.contracts.inputs import Inputs
from services.contracts.metric import Logit, LogitDiff, Metric
from services.contracts.model import ModelFacts
from services.contracts.place import site_violations
from services.contracts.result import PromptTokens
from services.contracts.sae import SaeFacts
from services.contracts.site import SiteName
from services.contracts.tensor import Estimate, ScalarStatistic


class DirectLogitAttribution(AttributionMethodBase):
    """Each component's direct contribution to the logits, through the final norm at the run's own scale."""

    type: Literal["direct_logit_attribution"]
    by_position: Annotated[
        bool, Field(description="Also the terms of the same logits at every position, not only the metric's.")
    ] = False
    by_source: Annotated[
        bool, Field(description="Also every head's term, split over the tokens that the head attends to.")
    ] = False
    neurons: Annotated[
        int, Field(ge=0, le=100, description="How many of the strongest MLP neurons to list; 0 for none.")
    ] = 0
    sae: Annotated[
        CatalogueId | None,
        Field(description="Also the terms of this SAE's features, in the place of what its site holds."),
    ] = None
    top_k: Annotated[TopFeatures, Field(description="How many of the SAE's strongest features to list.")] = 20
    promoted_logits: PromotedLogits = 5

    def sae_id(self) -> CatalogueId | None:
        return self.sae

    def sae_violations(self, sae: SaeFacts) -> Iterator[Violation]:
        yield from sae_violations(sae, "/method/sae")

    def violations(self, facts: ModelFacts) -> Iterator[Violation]:
        """Splits that need sites this model does not show."""
        if self.by_source:
            yield from site_violations(SiteName.PATTERN, facts, "/method/by_source", write=False)
        if self.neurons:
            yield from site_violations(SiteName.MLP_POST, facts, "/method/neurons", write=False)

    def input_violations(self, inputs: Inputs) -> Iterator[Violation]:
        """Splits over positions of examples whose positions do not correspond."""
        lengths = {len(example.prompt.ids) for example in inputs.examples}
        for name in ("by_position", "by_source"):
            if getattr(self, name) and len(lengths) > 1:
                message = (
                    f"the examples have between {min(lengths)} and {max(lengths)} tokens, so their positions do not "
                    f"correspond: leave {name} out, or send one job per length"
                )
                yield Violation(f"/method/{name}", ErrorCode.UNEQUAL_LENGTHS, message)

    def metric_violations(self, metric: Metric) -> Iterator[Violation]:
        """Only logits are sums of what components write."""
        if not isinstance(metric, Logit | LogitDiff):
            message = (
                f"{metric.type} is not a sum of what components write: direct logit attribution takes logit or "
                "logit_diff; attribution_patching takes every metric"
            )
            yield Violation("/metric/type", ErrorCode.UNSUPPORTED_METRIC, message)


class AttributedExample(Contract):
    tokens: PromptTokens
    metric: float
    sum_of_terms: float
    gap: Annotated[float, Field(description="|metric − sum of terms|, at most 1e-4 of the sum of their magnitudes.")]
    terms: DirectLogitTerms | None = None


class NeuronContribution(Contract):
    """What one MLP neuron writes straight into the metric: mlp_post · W_out through the norms at the run's scales.

    All neurons of a layer and the MLP's own output bias add up to that layer's term in `mlps`.
    """

    layer: int
    neuron: int
    contribution: ScalarStatistic


class DirectLogitOutcome(Contract):
    """`terms` are at the metric's position; `by_position` has the same with a last axis `position`, each position by
    the final norm's scale there, adding up to that position's own logits.

    `by_source` [layer, head, source] splits each head's term over source tokens: pattern · v · W_O, v with its bias, so
    that the sources add up to the head's term. `neurons` are those of largest |mean|, largest first. `split` has the
    features of the SAE that was named.
    """

    type: Literal["direct_logit_attribution"] = "direct_logit_attribution"
    examples: tuple[AttributedExample, ...]
    terms: DirectLogitTerms
    by_position: DirectLogitTerms | None = None
    by_source: Estimate | None = None
    neurons: tuple[NeuronContribution, ...] = ()
    split: FeatureSplit | None = None
