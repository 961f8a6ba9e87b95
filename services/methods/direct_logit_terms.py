"""The terms of direct logit attribution at one or many positions of one run, by a final norm whose scale is held."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from services.contracts.direct_logit_terms import DirectLogitTerms
from services.contracts.inputs import TokenizedExample
from services.contracts.metric import LogitDiff, Metric
from services.contracts.site import SiteName
from services.contracts.tensor import InlineTensor, Statistic
from services.engine.lane import Place
from services.engine.outcome import Outcome
from services.engine.readout import TokenLogits
from services.engine.row import Row
from services.engine.weights import Weights
from services.methods.metric import finite
from services.methods.statistics import RunningMean

Direction = Float[Tensor, " d_model"]
Taken = Mapping[Place, Float[Tensor, "_position ..."]]


@dataclass(frozen=True, eq=False)
class Aim:
    """What one example's terms point at: the direction and bias of the metric's logits, and its position."""

    position: int
    tokens: tuple[int, ...]
    direction: Direction
    bias: float

    @property
    def readout(self) -> TokenLogits:
        return TokenLogits(self.position, self.tokens)


@dataclass(frozen=True)
class Terms:
    """One example's terms, in logits before any soft cap: at each of some positions, or at a single one."""

    embedding: Float64[np.ndarray, "*position"]
    heads: Float64[np.ndarray, "layer head *position"]
    attention_bias: Float64[np.ndarray, " layer *position"]
    mlps: Float64[np.ndarray, " layer *position"]
    final_norm_bias: Float64[np.ndarray, "*position"]
    unembedding_bias: Float64[np.ndarray, "*position"]

    def arrays(self) -> tuple[Float64[np.ndarray, "..."], ...]:
        biases = (self.final_norm_bias, self.unembedding_bias)
        return (self.embedding, self.heads, self.attention_bias, self.mlps, *biases)

    def at(self, index: int) -> "Terms":
        """Those of one position."""
        return Terms(*(np.asarray(array[..., index]) for array in self.arrays()))

    @property
    def sum(self) -> float:
        return float(sum(array.sum() for array in self.arrays()))

    @property
    def magnitude(self) -> float:
        return float(sum(np.abs(array).sum() for array in self.arrays()))


def aim(example: TokenizedExample, metric: Metric, weights: Weights) -> Aim:
    """The answer's logit, minus the foil's where the metric has one."""
    assert example.answer is not None
    assert example.metric_position is not None
    tokens: tuple[int, ...] = (example.answer,)
    if isinstance(metric, LogitDiff):
        assert example.foil is not None
        tokens = (example.answer, example.foil)
    directions = weights.logit_directions(torch.tensor(tokens))
    biases = [0.0 if weights.b_U is None else float(weights.b_U[token]) * weights.logit_scale for token in tokens]
    direction = directions[0] - directions[1:].sum(dim=0)
    return Aim(example.metric_position, tokens, direction, biases[0] - sum(biases[1:]))


def taken_of(row: Row, outcome: Outcome, like: Tensor) -> dict[Place, Tensor]:
    """A row's captures by site and layer, where and as precise as the weights are."""
    return {(capture.site.name, capture.site.layer): outcome.captures[capture].to(like) for capture in row.captures}


def terms_of(taken: Taken, layers: int, aimed: Aim, weights: Weights) -> Terms:
    """The terms at every position that `taken` has of the embedding, z, the MLPs and the final residual stream."""
    direction, norm = aimed.direction, weights.final_norm
    final = taken[SiteName.RESID_POST, layers - 1]
    scale = norm.scale(final)

    def written(term: Float[Tensor, "position *part d_model"]) -> Float64[np.ndarray, "*part position"]:
        held = scale.reshape(len(scale), *[1] * (term.ndim - 1))
        logits = norm.linear(term, held) @ direction
        return np.moveaxis(logits.double().cpu().numpy(), 0, -1)

    heads = [weights.head_terms(layer, taken[SiteName.Z, layer]) for layer in range(layers)]
    nothing = np.zeros(len(final))
    mlps = [taken.get((SiteName.MLP_OUT, layer)) for layer in range(layers)]
    return Terms(
        embedding=written(taken[SiteName.RESID_PRE, 0]),
        heads=np.stack([written(by_head) for by_head, _ in heads]),
        attention_bias=np.stack([written(of_bias) for _, of_bias in heads]),
        mlps=np.stack([nothing if mlp is None else written(mlp) for mlp in mlps]),
        final_norm_bias=nothing + (0.0 if norm.bias is None else float(norm.bias @ direction)),
        unembedding_bias=nothing + aimed.bias,
    )


def metric_of(outcome: Outcome, weights: Weights) -> float:
    """The metric as the run itself gives it, a final soft cap undone."""
    logits = [uncapped(float(logit), weights.logit_soft_cap) for logit in outcome.values()]
    return finite(logits[0] - sum(logits[1:]), "the metric before the soft cap")


def uncapped(logit: float, cap: float | None) -> float:
    """What the cap was given; infinite where it is saturated and that cannot be told any more."""
    if cap is None:
        return logit
    return cap * math.atanh(logit / cap) if abs(logit) < cap else math.copysign(math.inf, logit)


class MeanTerms:
    """Terms averaged over examples as they come."""

    def __init__(self, last_dims: tuple[str, ...] = ()) -> None:
        self._dims = last_dims
        self._means = [RunningMean() for _ in range(6)]

    def add(self, terms: Terms) -> None:
        for mean, array in zip(self._means, terms.arrays(), strict=True):
            mean.add(array)

    def reported(self) -> DirectLogitTerms:
        embedding, heads, attention_bias, mlps, final_norm_bias, unembedding_bias = self._estimates()
        return DirectLogitTerms(
            embedding=embedding,
            heads=heads,
            attention_bias=attention_bias,
            mlps=mlps,
            final_norm_bias=final_norm_bias,
            unembedding_bias=unembedding_bias,
        )

    def _estimates(self) -> Iterator[InlineTensor | Statistic]:
        axes: Sequence[tuple[str, ...]] = ((), ("layer", "head"), ("layer",), ("layer",), (), ())
        for mean, dims in zip(self._means, axes, strict=True):
            yield mean.estimate((*dims, *self._dims))


def reported(terms: Terms) -> DirectLogitTerms:
    """One example's terms."""
    alone = MeanTerms()
    alone.add(terms)
    return alone.reported()
