"""What gradient × input takes, and what it answers."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from services.contracts.attribution_method import AttributionMethodBase, clean_gradient_violations
from services.contracts.base import Contract
from services.contracts.errors import Violation
from services.contracts.metric import Metric
from services.contracts.model import ModelFacts
from services.contracts.place import site_violations
from services.contracts.result import PromptTokens
from services.contracts.site import SiteName
from services.contracts.tensor import Tensor


class GradientXInput(AttributionMethodBase):
    """Each token's embedding times the metric's gradient there: what the metric would lose, were the model linear, if
    the embedding went to zero."""

    type: Literal["gradient_x_input"]

    def metric_violations(self, metric: Metric) -> Iterator[Violation]:
        """Its gradient is taken at the prompt itself."""
        yield from clean_gradient_violations(metric, "use log_prob, or integrated_gradients from a corrupted baseline")

    def violations(self, facts: ModelFacts) -> Iterator[Violation]:
        yield from site_violations(SiteName.EMBED, facts, "/method/type", write=True)


class InputAttributions(Contract):
    tokens: PromptTokens
    metric: float
    attributions: Annotated[Tensor, Field(description="By position, in the metric's units; positive raises it.")]


class GradientXInputOutcome(Contract):
    type: Literal["gradient_x_input"] = "gradient_x_input"
    examples: tuple[InputAttributions, ...]
