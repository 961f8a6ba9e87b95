"""What integrated gradients take, and what they answer."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from services.contracts.attribution_method import AttributionMethodBase
from services.contracts.base import Contract
from services.contracts.errors import ErrorCode, Violation
from services.contracts.model import ModelFacts
from services.contracts.place import site_violations
from services.contracts.quadrature import Quadrature, Steps
from services.contracts.result import PromptTokens
from services.contracts.site import SiteName
from services.contracts.tensor import Tensor

Baseline = Literal["corrupted", "zero", "mean_embedding"]


class IntegratedGradients(AttributionMethodBase):
    """Each token's share of metric − metric at the baseline (Sundararajan et al. 2017): its embedding's way from the
    baseline's, times the gradient averaged along the straight line between the two, all positions moving together.

    `corrupted` works on `pairs`: from the corrupted prompt's embeddings to the clean one's. `zero` and
    `mean_embedding` (the mean over the vocabulary) work on `examples`; with them the line leaves what the model was
    trained on, and where its norms are RMSNorms the integral from `zero` means little: look at the completeness gap.
    """

    type: Literal["integrated_gradients"]
    baseline: Baseline = "corrupted"
    steps: Steps = 50
    quadrature: Quadrature = "midpoint"

    def takes_pairs(self) -> bool:
        return self.baseline == "corrupted"

    def violations(self, facts: ModelFacts) -> Iterator[Violation]:
        """A model whose embeddings cannot be set, and a trapezoid without two ends."""
        yield from site_violations(SiteName.EMBED, facts, "/method/type", write=True)
        if self.quadrature == "trapezoid" and self.steps < 2:
            message = "a trapezoid has two ends: take at least 2 steps, or another quadrature"
            yield Violation("/method/steps", ErrorCode.INVALID_REQUEST, message)


class IntegratedExample(Contract):
    """`tokens` are the example's, or the pair's clean ones; `baseline_tokens` the pair's corrupted ones."""

    tokens: PromptTokens
    baseline_tokens: PromptTokens | None = None
    metric: float
    baseline_metric: float
    attributions: Annotated[Tensor, Field(description="By position, in the metric's units; positive raises it.")]
    sum: float
    completeness_gap: Annotated[
        float, Field(description="metric − baseline_metric − sum: what too few steps leave unexplained.")
    ]


class IntegratedGradientsOutcome(Contract):
    type: Literal["integrated_gradients"] = "integrated_gradients"
    baseline: Baseline
    steps: int
    quadrature: Quadrature
    examples: tuple[IntegratedExample, ...]
