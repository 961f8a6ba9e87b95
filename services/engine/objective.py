"""The number that gradients are taken of, as data: a function of a row's reading.

metric                     readout                                  objective
logit, log_prob            TokenLogits, TokenLogProbs (answer)      Weighted((1,))
logit_diff                 TokenLogits (answer, foil)               Weighted((1, -1))
prob_diff                  TokenLogProbs (answers, foils)           WeightedProbabilities((1, …, -1, …))
kl_divergence              Divergence                               Weighted((1,))
cross_entropy              Loss                                     Weighted((1,))
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Weighted:
    """The sum of weights[i] · reading[i], in the reading's units; a scalar reading counts as one number."""

    weights: tuple[float, ...]


@dataclass(frozen=True)
class WeightedProbabilities:
    """The sum of weights[i] · exp(reading[i]) over log probabilities: a probability."""

    weights: tuple[float, ...]


Objective = Weighted | WeightedProbabilities


def objective_value(objective: Objective, numbers: Float[Tensor, "*number"]) -> Float[Tensor, ""]:
    """What `objective` makes of a reading; differentiable."""
    weights = torch.tensor(objective.weights, dtype=numbers.dtype, device=numbers.device)
    terms = numbers.exp() if isinstance(objective, WeightedProbabilities) else numbers
    return (weights * terms.reshape(-1)).sum()
