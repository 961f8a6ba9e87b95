"""What direct logit attribution takes, and what it answers."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from services.contracts.attribution_method import AttributionMethodBase
from services.contracts.base import Contract
from services.contracts.errors import ErrorCode, Violation
from services.contracts.metric import Logit, LogitDiff, Metric
from services.contracts.result import PromptTokens
from services.contracts.tensor import Estimate


class DirectLogitAttribution(AttributionMethodBase):
    """Each component's direct contribution to the logits, through the final norm at the run's own scale."""

    type: Literal["direct_logit_attribution"]

    def metric_violations(self, metric: Metric) -> Iterator[Violation]:
        """Only logits are sums of what components write."""
        if not isinstance(metric, Logit | LogitDiff):
            message = (
                f"{metric.type} is not a sum of what components write: direct logit attribution takes logit or "
                "logit_diff; attribution_patching takes every metric"
            )
            yield Violation("/metric/type", ErrorCode.UNSUPPORTED_METRIC, message)


class DirectLogitTerms(Contract):
    """Logits (before any soft cap) that each part writes in the metric's direction.

    They add up to the metric: embedding + Σ heads + Σ attention_bias + Σ mlps + final_norm_bias + unembedding_bias.
    """

    embedding: Estimate
    heads: Estimate
    attention_bias: Estimate
    mlps: Annotated[Estimate, Field(description="Zeros in a model of attention alone.")]
    final_norm_bias: Estimate
    unembedding_bias: Estimate


class AttributedExample(Contract):
    tokens: PromptTokens
    metric: float
    sum_of_terms: float
    gap: Annotated[float, Field(description="|metric − sum of terms|, at most 1e-4 of the sum of their magnitudes.")]
    terms: DirectLogitTerms | None = None


class DirectLogitOutcome(Contract):
    type: Literal["direct_logit_attribution"] = "direct_logit_attribution"
    examples: tuple[AttributedExample, ...]
    terms: DirectLogitTerms
