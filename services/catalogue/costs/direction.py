"""What `direction` costs: every prompt of both sets once, up to the deepest layer asked for."""

from services.catalogue.costs.cost import FLOAT_BYTES, Cost
from services.catalogue.costs.rows import PlannedRow, Touch, work
from services.contracts.direction import DirectionSpec
from services.contracts.inputs import Inputs
from services.contracts.model import ModelFacts
from services.contracts.site import SiteName


def direction_cost(spec: DirectionSpec, inputs: Inputs, model: ModelFacts) -> Cost:
    layers = spec.layers_of(model)
    site = SiteName(spec.site)
    depth = max(layers) + (site is not SiteName.RESID_PRE)
    rows = [
        PlannedRow(prompt.ids, depth, tuple(Touch(site, layer, _position(spec, len(prompt.ids))) for layer in layers))
        for prompt in inputs.references
    ]
    floats = len(layers) * (model.d_model + len(inputs.references))
    return Cost(work(rows, model.layers), floats * FLOAT_BYTES)


def _position(spec: DirectionSpec, length: int) -> int:
    """The first that is read."""
    if spec.position == "mean":
        return 1
    return length - 1 if spec.position == "last" else spec.position % length
