"""A metric of a run: which readout it needs, and the number it makes of the reading, which gradients are taken of."""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from services.contracts.errors import ErrorCode, JobFailed
from services.contracts.inputs import Inputs, TokenizedExample, TokenizedPair
from services.contracts.metric import CrossEntropy, KlDivergence, Logit, LogitDiff, LogProb, Metric, ProbDiff
from services.engine.objective import Objective, Weighted, WeightedProbabilities, objective_value
from services.engine.readout import Divergence, Loss, Readout, TokenLogits, TokenLogProbs

Reading = Float[Tensor, "..."]


_ONLY = Weighted((1.0,))
_DIFFERENCE = Weighted((1.0, -1.0))


@dataclass(frozen=True)
class Measure:
    """One pair's or example's metric as the engine can read it: logits, nats or probabilities as the metric says."""

    readout: Readout
    objective: Objective

    def value(self, reading: Reading) -> float:
        """The metric, from what `readout` yields."""
        return float(objective_value(self.objective, reading.double()))


def measure(metric: Metric, item: TokenizedPair | TokenizedExample, inputs: Inputs) -> Measure:
    """The metric of `item`. The gateway has made sure of its answer, foil and position."""
    reference = item.clean if isinstance(item, TokenizedPair) else item.prompt
    if isinstance(metric, CrossEntropy):
        return Measure(Loss(reference.ids[1:]), _ONLY)
    position = _known(item.metric_position)
    match metric:
        case Logit():
            return Measure(TokenLogits(position, (_known(item.answer),)), _ONLY)
        case LogitDiff():
            return Measure(TokenLogits(position, (_known(item.answer), _known(item.foil))), _DIFFERENCE)
        case LogProb():
            return Measure(TokenLogProbs(position, (_known(item.answer),)), _ONLY)
        case KlDivergence():
            return Measure(Divergence(position, reference.ids), _ONLY)
        case ProbDiff():
            signs = (1.0,) * len(inputs.answers) + (-1.0,) * len(inputs.foils)
            return Measure(TokenLogProbs(position, inputs.answers + inputs.foils), WeightedProbabilities(signs))


def finite(value: float, what: str) -> float:
    """`value`, which a result states; raises JobFailed rather than state something that is not a number."""
    if not math.isfinite(value):
        message = f"{what} is {value}: this model overflows on this prompt; ask for another metric or a wider dtype"
        raise JobFailed(ErrorCode.METHOD_FAILED, message)
    return value


def _known(value: int | None) -> int:
    assert value is not None, "the gateway resolves every position and answer that a metric needs"
    return value
