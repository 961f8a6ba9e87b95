"""What `activations` costs: every prompt up to the deepest site that is read."""

from services.catalogue.costs.cost import FLOAT_BYTES, Cost
from services.contracts.activations import ActivationsSpec, activation_dims
from services.contracts.inputs import Inputs
from services.contracts.model import ModelFacts
from services.contracts.place import Place
from services.contracts.site import SiteName


def activations_cost(spec: ActivationsSpec, inputs: Inputs, model: ModelFacts) -> Cost:
    depth = max(depth_of(place) for place in spec.sites)
    lengths = [len(prompt.ids) for prompt in inputs.prompts]
    floats = sum(floats_of(place, length, model) for place in spec.sites for length in lengths)
    return Cost(sum(max(1, length * depth) for length in lengths), floats * FLOAT_BYTES)


def depth_of(place: Place) -> int:
    """Blocks that a run goes through for it: none for what enters the first."""
    site, layer = place.located()
    if layer is None:
        return 0
    return layer if site is SiteName.RESID_PRE else layer + 1


def floats_of(place: Place, length: int, model: ModelFacts) -> int:
    """Numbers of the activation there, in a prompt of `length` tokens."""
    site, _ = place.located()
    sizes = {
        "position": len(place.positions or range(length)),
        "query": len(place.positions or range(length)),
        "key": length,
        "head": model.heads,
        "kv_head": model.kv_heads,
        "d_head": model.d_head,
        "d_mlp": model.d_mlp,
        "d_model": model.d_model,
    }
    floats = 1
    for dim in activation_dims(site, place.head):
        floats *= sizes[dim]
    return floats
