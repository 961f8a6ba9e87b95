"""What is measured of a run: one number, tagged by `type`.

Logits are raw model outputs; log probabilities and divergences are in nats. `position` counts from 0, or from the end
with negatives.
"""

from typing import Annotated, Literal

from pydantic import Field

from services.contracts.base import Position, Request
from services.contracts.prompt import Answer

AnswerSet = Annotated[tuple[Answer, ...], Field(min_length=1, max_length=1_000)]


class Logit(Request):
    """The logit of the answer."""

    type: Literal["logit"]
    position: Position = -1


class LogitDiff(Request):
    """The logit of the answer minus the logit of the foil."""

    type: Literal["logit_diff"] = "logit_diff"
    position: Position = -1


class LogProb(Request):
    """The log probability of the answer, in nats."""

    type: Literal["log_prob"]
    position: Position = -1


class ProbDiff(Request):
    """The probability of all `answers` together minus that of all `foils` together."""

    type: Literal["prob_diff"]
    answers: AnswerSet
    foils: AnswerSet
    position: Position = -1


class KlDivergence(Request):
    """KL(clean ‖ patched) of the next-token distributions, in nats; the clean run is the reference in both modes."""

    type: Literal["kl_divergence"]
    position: Position = -1


class CrossEntropy(Request):
    """The mean next-token loss on the clean run's tokens, in nats."""

    type: Literal["cross_entropy"]


Metric = Annotated[Logit | LogitDiff | LogProb | ProbDiff | KlDivergence | CrossEntropy, Field(discriminator="type")]

ANSWER_METRICS = ("logit", "logit_diff", "log_prob")
FOIL_METRICS = ("logit_diff",)
