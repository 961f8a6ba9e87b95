"""A metric of a run: which readout it needs, and the number it makes of the reading."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from services.contracts.errors import ErrorCode, JobFailed
from services.contracts.inputs import Inputs, TokenizedExample, TokenizedPair
from services.contracts.metric import CrossEntropy, KlDivergence, Logit, LogitDiff, LogProb, Metric, ProbDiff
from services.engine.readout import Divergence, Loss, Readout, TokenLogits, TokenLogProbs

Reading = Float[Tensor, "..."]


@dataclass(frozen=True)
class Measure:
    """One pair's or example's metric as the engine can read it: logits, nats or probabilities as the metric says."""

    readout: Readout
    value: Callable[[Reading], float]


def measure(metric: Metric, item: TokenizedPair | TokenizedExample, inputs: Inputs) -> Measure:
    """The metric of `item`. The gateway has made sure of its answer, foil and position."""
    reference = item.clean if isinstance(item, TokenizedPair) else item.prompt
    if isinstance(metric, CrossEntropy):
        return Measure(Loss(reference.ids[1:]), _only)
    position = _known(item.metric_position)
    match metric:
        case Logit():
            return Measure(TokenLogits(position, (_known(item.answer),)), _only)
        case LogitDiff():
            return Measure(TokenLogits(position, (_known(item.answer), _known(item.foil))), _difference)
        case LogProb():
            return Measure(TokenLogProbs(position, (_known(item.answer),)), _only)
        case KlDivergence():
            return Measure(Divergence(position, reference.ids), _only)
        case ProbDiff():
            tokens = inputs.answers + inputs.foils
            return Measure(TokenLogProbs(position, tokens), _ProbabilityDifference(len(inputs.answers)))


@dataclass(frozen=True)
class _ProbabilityDifference:
    answers: int

    def __call__(self, reading: Reading) -> float:
        probabilities = reading.double().exp()
        return float(probabilities[: self.answers].sum() - probabilities[self.answers :].sum())


def finite(value: float, what: str) -> float:
    """`value`, which a result states; raises JobFailed rather than state something that is not a number."""
    if not math.isfinite(value):
        message = f"{what} is {value}: this model overflows on this prompt; ask for another metric or a wider dtype"
        raise JobFailed(ErrorCode.METHOD_FAILED, message)
    return value


def _only(reading: Reading) -> float:
    return float(reading)


def _difference(reading: Reading) -> float:
    return float(reading[0].double() - reading[1].double())


def _known(value: int | None) -> int:
    assert value is not None, "the gateway resolves every position and answer that a metric needs"
    return value
