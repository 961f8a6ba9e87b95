"""Contrast of two sets of prompts: which features tell them apart."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from services.contracts.base import Contract, Request
from services.contracts.errors import ErrorCode, Violation
from services.contracts.prompt import Prompt

MAX_PROMPTS = 1_000

MAX_SCORES = 2**25
"""Of one contrast, a prompt's score of a feature each: all are held at once, in float64 where a feature fires."""


class Contrast(Request):
    """The job's `prompts` against those of `baseline`, by one score per prompt and feature.

    The score is the feature's largest or mean activation over the prompt's tokens within the SAE's norm threshold.
    """

    baseline: Annotated[tuple[Prompt, ...], Field(min_length=1, max_length=MAX_PROMPTS)]
    score: Literal["max", "mean"] = "max"

    def violations(self, prompts: int) -> Iterator[Violation]:
        """More prompts than a job may have; `prompts` is the size of the other set."""
        if prompts + len(self.baseline) > MAX_PROMPTS:
            message = f"the two sets have {prompts + len(self.baseline)} prompts, and may have {MAX_PROMPTS} together"
            yield Violation("/contrast/baseline", ErrorCode.JOB_TOO_LARGE, message)


class ContrastedFeature(Contract):
    """One feature's scores on both sets. Positive `hedges_g` and `auroc` over a half: higher on `prompts`."""

    index: int
    mean: Annotated[float, Field(description="Mean score over `prompts`.")]
    baseline_mean: float
    firing: Annotated[float, Field(description="Fraction of `prompts` on which it fires at all.")]
    baseline_firing: float
    hedges_g: Annotated[
        float | None,
        Field(description="Difference of means in pooled standard deviations, corrected; null if these are zero."),
    ]
    auroc: Annotated[
        float,
        Field(description="Chance that a prompt scores above a baseline one, ties half; rank-biserial = 2 auroc − 1."),
    ]
    p_value: Annotated[float, Field(description="Mann-Whitney U, two-sided: normal, corrected for ties, continuity.")]
    q_value: Annotated[float, Field(description="Benjamini-Hochberg, over the features tested.")]


class FeatureContrast(Contract):
    """The features that tell the sets apart, by p-value, then |g|.

    A feature that fires in neither set is not `tested`. Prompts whose every token is over the norm threshold have no
    score: `prompts` and `baseline_prompts` count the others.
    """

    score: Literal["max", "mean"]
    prompts: int
    baseline_prompts: int
    tested: int
    features: tuple[ContrastedFeature, ...]
