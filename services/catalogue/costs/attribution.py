"""What `attribution` costs, by method."""

from services.catalogue.costs.cost import FLOAT_BYTES, Cost
from services.contracts.attribution import AttributionSpec
from services.contracts.direct_logit_attribution import DirectLogitAttribution
from services.contracts.inputs import Inputs
from services.contracts.model import ModelFacts

NEURON_BYTES = 120
"""One listed neuron, as JSON."""


def attribution_cost(spec: AttributionSpec, inputs: Inputs, model: ModelFacts) -> Cost:
    match spec.method:
        case DirectLogitAttribution():
            return _direct_logit_attribution(spec, spec.method, inputs, model)


def _direct_logit_attribution(
    spec: AttributionSpec, method: DirectLogitAttribution, inputs: Inputs, model: ModelFacts
) -> Cost:
    """One run an example."""
    length = max(len(example.prompt.ids) for example in inputs.examples)
    terms = model.layers * (model.heads + 2) + 3
    averaged = terms
    if method.by_position:
        averaged += terms * length
    if method.by_source:
        averaged += model.layers * model.heads * length
    floats = 2 * averaged + len(inputs.examples) * spec.per_example * terms
    return Cost(inputs.tokens() * model.layers, floats * FLOAT_BYTES + method.neurons * NEURON_BYTES)
