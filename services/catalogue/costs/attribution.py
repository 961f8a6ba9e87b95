"""What `attribution` costs, by method."""

from services.catalogue.costs.cost import FLOAT_BYTES, Cost
from services.contracts.attribution import AttributionSpec
from services.contracts.direct_logit_attribution import DirectLogitAttribution
from services.contracts.inputs import Inputs
from services.contracts.model import ModelFacts


def attribution_cost(spec: AttributionSpec, inputs: Inputs, model: ModelFacts) -> Cost:
    match spec.method:
        case DirectLogitAttribution():
            return _direct_logit_attribution(spec, inputs, model)


def _direct_logit_attribution(spec: AttributionSpec, inputs: Inputs, model: ModelFacts) -> Cost:
    """One run an example."""
    terms = model.layers * (model.heads + 2) + 3
    tensors = len(inputs.examples) * spec.per_example + 2
    return Cost(inputs.tokens() * model.layers, tensors * terms * FLOAT_BYTES)
