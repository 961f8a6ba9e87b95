"""`attribution`: share the metric out among the model's parts."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from services.contracts.base import Contract, Request
from services.contracts.errors import Violation
from services.contracts.metric import Logit, LogitDiff
from services.contracts.model import ModelFacts
from services.contracts.prompt import Example
from services.contracts.result import PromptTokens, Result
from services.contracts.spec import Spec
from services.contracts.tensor import Estimate


class DirectLogitAttribution(Request):
    """Each component's direct contribution to the logits, through the final norm at the run's own scale."""

    type: Literal["direct_logit_attribution"]


DirectMetric = Annotated[Logit | LogitDiff, Field(discriminator="type")]


class AttributionSpec(Spec):
    kind: Literal["attribution"]
    method: DirectLogitAttribution
    examples: Annotated[tuple[Example, ...], Field(min_length=1, max_length=1_000)]
    metric: DirectMetric = LogitDiff()
    per_example: Annotated[bool, Field(description="Also report every example's own terms.")] = False

    def violations(self, facts: ModelFacts) -> Iterator[Violation]:
        """Nothing in this specification names a part of the model, so nothing can be missing."""
        del facts
        yield from ()


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


class AttributionResult(Result):
    kind: Literal["attribution"] = "attribution"
    method: Literal["direct_logit_attribution"] = "direct_logit_attribution"
    examples: tuple[AttributedExample, ...]
    terms: DirectLogitTerms
