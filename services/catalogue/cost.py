"""What a job will cost, before it is queued: engine work in token-layers, and the bytes of its result.

A token-layer is one position through one block, the unit in which the engine plans, shares and bills its work. The
estimate follows the engine's own rule: a patched run is computed from the patched layer and the first changed position
on (all of it where the embedding changes), and its unpatched run once. What is the same whatever the job asks for
(unembedding, tokens' texts) is left out.
"""

from dataclasses import dataclass

from services.contracts.attribution import AttributionSpec
from services.contracts.features import FeaturesSpec
from services.contracts.inputs import Inputs, TokenizedPair
from services.contracts.job import JobSpec
from services.contracts.model import ModelFacts
from services.contracts.patching import PatchingSpec, heads_of
from services.contracts.sae import SaeFacts

FLOAT_BYTES = 4
FEATURE_BYTES = 48
"""One active feature of one token, as JSON."""


@dataclass(frozen=True)
class Cost:
    """An estimate: `token_layers` of engine work, `output_bytes` of result."""

    token_layers: int
    output_bytes: int


def estimate(spec: JobSpec, inputs: Inputs, model: ModelFacts, sae: SaeFacts | None) -> Cost:
    """The cost of a job whose inputs have been read."""
    match spec:
        case PatchingSpec():
            return _patching(spec, inputs, model)
        case AttributionSpec():
            terms = model.layers * (model.heads + 2) + 3
            tensors = len(inputs.examples) * spec.per_example + 2
            return Cost(inputs.tokens() * model.layers, tensors * terms * FLOAT_BYTES)
        case FeaturesSpec():
            assert sae is not None
            chosen = len(spec.features or ()) * FLOAT_BYTES
            output = inputs.tokens() * (chosen + spec.top_k * FEATURE_BYTES)
            return Cost(inputs.tokens() * (sae.layer + 1), output)


def _patching(spec: PatchingSpec, inputs: Inputs, model: ModelFacts) -> Cost:
    work = sum(2 * len(pair.clean.ids) * model.layers + _sweep(spec, pair, model) for pair in inputs.pairs)
    cells = len(_layers(spec, model)) * _heads(spec, model) * len(_positions(spec, inputs.pairs[0], model))
    statistics = 2 if len(inputs.pairs) == 1 else 4
    tensors = statistics + len(inputs.pairs) * spec.per_pair
    return Cost(work, tensors * cells * FLOAT_BYTES)


def _sweep(spec: PatchingSpec, pair: TokenizedPair, model: ModelFacts) -> int:
    """The patched runs of one pair. Before the first token that differs a patch changes nothing: that cell counts 1."""
    length = len(pair.clean.ids)
    first = min(pair.differing, default=length)
    layers, heads, starts = _layers(spec, model), _heads(spec, model), _positions(spec, pair, model)
    if heads_of(spec.method.site, model) and spec.method.positions is None:
        starts = (first,)
    reaches = [length - start for start in starts if first <= start < length]
    free = len(layers) * heads * (len(starts) - len(reaches))
    if spec.method.site == "embed":
        return len(reaches) * length * model.layers + free
    enters = 1 if spec.method.site == "resid_post" else 0
    depth = sum(model.layers - layer - enters for layer in layers)
    return heads * depth * sum(reaches) + free


def _layers(spec: PatchingSpec, model: ModelFacts) -> tuple[int, ...]:
    if spec.method.site == "embed":
        return (0,)
    return spec.method.layers or tuple(range(model.layers))


def _heads(spec: PatchingSpec, model: ModelFacts) -> int:
    return len(spec.method.heads or ()) or heads_of(spec.method.site, model) or 1


def _positions(spec: PatchingSpec, pair: TokenizedPair, model: ModelFacts) -> tuple[int, ...]:
    """Where each cell's patch begins: a head without positions is patched from the start on."""
    length = len(pair.clean.ids)
    if spec.method.positions is None:
        return (0,) if heads_of(spec.method.site, model) else tuple(range(length))
    return tuple(
        pair.positions[position] if isinstance(position, str) else position % length
        for position in spec.method.positions
    )
