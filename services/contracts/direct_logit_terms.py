"""The terms of direct logit attribution, by component."""

from typing import Annotated

from pydantic import Field

from services.contracts.base import Contract
from services.contracts.tensor import Estimate


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
