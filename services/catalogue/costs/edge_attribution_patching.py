"""What edge attribution patching costs: two runs a pair, and every step forward and backward."""

from services.catalogue.costs.cost import FLOAT_BYTES, GRADIENT_PASSES, Cost
from services.contracts.attribution import AttributionSpec
from services.contracts.edge_attribution_patching import EdgeAttributionPatching
from services.contracts.inputs import Inputs
from services.contracts.metric import KlDivergence
from services.contracts.model import ModelFacts

EDGE_BYTES = 96
"""One named edge with its score, as JSON."""


def edge_attribution_patching_cost(
    method: EdgeAttributionPatching, spec: AttributionSpec, inputs: Inputs, model: ModelFacts
) -> Cost:
    """A divergence also reads the clean run by itself."""
    parts = 2 if model.d_mlp else 1
    moved = {"eap": 0, "eap_ig_inputs": 1, "eap_ig_activations": 1 + parts * model.layers}[method.variant]
    passes = 2 + GRADIENT_PASSES * (moved * method.steps or 1) + isinstance(spec.metric, KlDivergence)
    tokens = sum(len(pair.clean.ids) for pair in inputs.pairs)
    writers = 1 + model.layers * (model.heads + parts - 1)
    readers = 1 + model.layers * (model.heads + 2 * model.kv_heads + parts - 1)
    tensors = method.scores * min(2, len(inputs.pairs)) + spec.per_example * len(inputs.pairs)
    output = tensors * writers * readers * FLOAT_BYTES + method.top_k * EDGE_BYTES
    return Cost(passes * tokens * model.layers, output)
