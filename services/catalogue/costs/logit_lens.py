"""What `logit_lens` costs: every prompt once, and one unembedding per layer and position, the final one's besides."""

from services.catalogue.costs.cost import FLOAT_BYTES, Cost, unembedding_token_layers
from services.contracts.inputs import Inputs
from services.contracts.logit_lens import LogitLensSpec
from services.contracts.model import ModelFacts

TOKEN_BYTES = 88
"""One listed token, as JSON."""


def logit_lens_cost(spec: LogitLensSpec, inputs: Inputs, model: ModelFacts) -> Cost:
    layers = len(spec.read_layers(model))
    positions = sum(len(spec.positions or example.prompt.ids) for example in inputs.examples)
    unembedded = positions * (layers + 1) * unembedding_token_layers(model)
    tensors = 2 if spec.metric is None else 3
    output = positions * layers * (tensors * FLOAT_BYTES + spec.top_k * TOKEN_BYTES)
    return Cost(inputs.tokens() * model.layers + unembedded, output)
