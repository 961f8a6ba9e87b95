"""Where direct logit terms come from: a head's from source tokens, an MLP's from neurons.

The direction that terms are dotted with is carried back instead, through the final norm and the family's post-norms at
the run's scales, to what mixes the parts: then each part is one product.

1. head: z = Σ_s pattern[t, s] · v_s, so source s has pattern[t, s] · v_s · (W_O · direction), biases of v included;
2. MLP: mlp_out = Σ_n mlp_post[n] · W_out[n] + b_out, so neuron n has mlp_post[n] · (W_out[n] · direction).
"""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float64

from services.contracts.direct_logit_attribution import NeuronContribution
from services.contracts.site import SiteName
from services.contracts.tensor import ScalarStatistic
from services.engine.weights import Weights
from services.methods.direct_logit_terms import Direction, Taken
from services.methods.statistics import RunningMean

BySource = Float64[np.ndarray, "layer head source"]
ByNeuron = Float64[np.ndarray, "layer neuron"]


def by_source(taken: Taken, at: int, layers: int, direction: Direction, weights: Weights) -> BySource:
    """Every head's term, split over the tokens it attends to. `at` is the metric's place among z's positions.

    `direction` is the one before the final norm; `pattern` is taken at the metric's position alone, `v` at all.
    """
    split = []
    for layer in range(layers):
        before_norm = weights.attention_direction(layer, taken[SiteName.Z, layer][at], direction)
        by_head = weights.W_O(layer).to(direction) @ before_norm
        values = weights.attended_values(taken[SiteName.V, layer])
        per_attention = torch.einsum("shd,hd->hs", values, by_head)
        split.append((taken[SiteName.PATTERN, layer][0] * per_attention).double().cpu().numpy())
    return np.stack(split)


def by_neuron(taken: Taken, layers: int, direction: Direction, weights: Weights) -> ByNeuron:
    """Every neuron's part of its MLP's term; `mlp_post` is taken at the metric's position alone."""
    split = []
    for layer in range(layers):
        mlp_post = taken[SiteName.MLP_POST, layer][0]
        before_norm = weights.mlp_direction(layer, mlp_post, direction)
        split.append((mlp_post * (weights.W_out(layer).to(direction) @ before_norm)).double().cpu().numpy())
    return np.stack(split)


def strongest(neurons: RunningMean, count: int) -> Iterator[NeuronContribution]:
    """The neurons of largest |mean|, largest first."""
    errors = neurons.standard_error()
    order = np.argsort(-np.abs(neurons.mean), axis=None, kind="stable")[:count]
    for layer, neuron in zip(*np.unravel_index(order, neurons.mean.shape), strict=True):
        yield NeuronContribution(
            layer=int(layer),
            neuron=int(neuron),
            contribution=ScalarStatistic(
                mean=float(neurons.mean[layer, neuron]),
                standard_error=None if errors is None else float(errors[layer, neuron]),
                count=neurons.count,
            ),
        )
