"""What `patching` costs: two unpatched runs a pair, and of each patched run the part that its patch can change."""

from services.catalogue.costs.cost import FLOAT_BYTES, Cost
from services.catalogue.costs.feature_changes import feature_patching_cost
from services.catalogue.costs.path_patching import path_patching_work
from services.contracts.feature_patching import FeaturePatching
from services.contracts.inputs import Inputs, TokenizedPair
from services.contracts.model import ModelFacts
from services.contracts.patching import ActivationPatching, PatchingSpec
from services.contracts.path_patching import PathPatching
from services.contracts.place import heads_of
from services.contracts.sae import SaeFacts


def patching_cost(spec: PatchingSpec, inputs: Inputs, model: ModelFacts, sae: SaeFacts | None) -> Cost:
    match spec.method:
        case FeaturePatching() as method:
            assert sae is not None, "a job that names an SAE is estimated with its facts"
            return feature_patching_cost(method, spec, inputs, model, sae)
        case ActivationPatching() as method:
            work = sum(2 * len(pair.clean.ids) * model.layers + _sweep(method, pair, model) for pair in inputs.pairs)
            cells = len(_layers(method, model)) * _heads(method, model)
            cells *= len(_positions(method, inputs.pairs[0], model))
        case PathPatching() as method:
            work = path_patching_work(method, inputs.pairs, model)
            cells = len(method.writers(model)) * len(method.positions or (None,))
    statistics = 2 if len(inputs.pairs) == 1 else 4
    tensors = statistics + len(inputs.pairs) * spec.per_pair
    return Cost(work, tensors * cells * FLOAT_BYTES)


def _sweep(method: ActivationPatching, pair: TokenizedPair, model: ModelFacts) -> int:
    """The patched runs of one pair. Before the first token that differs a patch changes nothing: that cell counts 1."""
    length = len(pair.clean.ids)
    first = min(pair.differing, default=length)
    layers, heads, starts = _layers(method, model), _heads(method, model), _positions(method, pair, model)
    if heads_of(method.site, model) and method.positions is None:
        starts = (first,)
    reaches = [length - start for start in starts if first <= start < length]
    free = len(layers) * heads * (len(starts) - len(reaches))
    if method.site == "embed":
        return len(reaches) * length * model.layers + free
    enters = 1 if method.site == "resid_post" else 0
    depth = sum(model.layers - layer - enters for layer in layers)
    return heads * depth * sum(reaches) + free


def _layers(method: ActivationPatching, model: ModelFacts) -> tuple[int, ...]:
    if method.site == "embed":
        return (0,)
    return method.layers or tuple(range(model.layers))


def _heads(method: ActivationPatching, model: ModelFacts) -> int:
    return len(method.heads or ()) or heads_of(method.site, model) or 1


def _positions(method: ActivationPatching, pair: TokenizedPair, model: ModelFacts) -> tuple[int, ...]:
    """Where each cell's patch begins: a head without positions is patched from the start on."""
    length = len(pair.clean.ids)
    if method.positions is None:
        return (0,) if heads_of(method.site, model) else tuple(range(length))
    return tuple(
        pair.positions[position] if isinstance(position, str) else position % length for position in method.positions
    )
