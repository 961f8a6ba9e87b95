"""What `attribution` costs, by method."""

from services.catalogue.costs.attribution_patching import attribution_patching_cost
from services.catalogue.costs.cost import FLOAT_BYTES, GRADIENT_PASSES, Cost
from services.catalogue.costs.edge_attribution_patching import edge_attribution_patching_cost
from services.catalogue.costs.feature_attribution import feature_attribution_cost
from services.catalogue.costs.features import PROMOTED_BYTES
from services.contracts.attribution import AttributionSpec
from services.contracts.attribution_patching import AttributionPatching
from services.contracts.direct_logit_attribution import DirectLogitAttribution
from services.contracts.edge_attribution_patching import EdgeAttributionPatching
from services.contracts.feature_attribution import FeatureAttribution
from services.contracts.gradient_x_input import GradientXInput
from services.contracts.inputs import Inputs
from services.contracts.integrated_gradients import IntegratedGradients
from services.contracts.model import ModelFacts
from services.contracts.sae import SaeFacts

NEURON_BYTES = 120
"""One listed neuron, as JSON."""

FEATURE_BYTES = 340
"""One listed feature, as JSON."""


def attribution_cost(spec: AttributionSpec, inputs: Inputs, model: ModelFacts, sae: SaeFacts | None) -> Cost:
    match spec.method:
        case DirectLogitAttribution():
            return _direct_logit_attribution(spec, spec.method, inputs, model, sae)
        case GradientXInput():
            return Cost(GRADIENT_PASSES * inputs.tokens() * model.layers, inputs.tokens() * FLOAT_BYTES)
        case IntegratedGradients() as method:
            return _integrated_gradients(method, inputs, model)
        case AttributionPatching() as method:
            return attribution_patching_cost(method, spec, inputs, model)
        case EdgeAttributionPatching() as method:
            return edge_attribution_patching_cost(method, spec, inputs, model)
        case FeatureAttribution() as method:
            assert sae is not None, "a job that names an SAE is estimated with its facts"
            return feature_attribution_cost(method, spec, inputs, model, sae)


def _direct_logit_attribution(
    spec: AttributionSpec, method: DirectLogitAttribution, inputs: Inputs, model: ModelFacts, sae: SaeFacts | None
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
    listed = method.neurons * NEURON_BYTES
    if sae is not None:
        floats += 2 * terms + len(inputs.examples) * spec.per_example * method.top_k
        listed += min(method.top_k, sae.features) * (FEATURE_BYTES + 2 * method.promoted_logits * PROMOTED_BYTES)
    return Cost(inputs.tokens() * model.layers, floats * FLOAT_BYTES + listed)


def _integrated_gradients(method: IntegratedGradients, inputs: Inputs, model: ModelFacts) -> Cost:
    """Two readings a prompt, and every step forward and backward."""
    prompts = [pair.clean for pair in inputs.pairs] + [example.prompt for example in inputs.examples]
    tokens = sum(len(prompt.ids) for prompt in prompts)
    passes = 2 + GRADIENT_PASSES * method.steps
    return Cost(passes * tokens * model.layers, tokens * FLOAT_BYTES)
