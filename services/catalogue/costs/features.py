"""What `features` costs: every prompt up to the SAE's layer."""

from services.catalogue.costs.cost import FLOAT_BYTES, Cost
from services.contracts.features import FeaturesSpec
from services.contracts.inputs import Inputs
from services.contracts.sae import SaeFacts

FEATURE_BYTES = 48
"""One active feature of one token, as JSON."""


def features_cost(spec: FeaturesSpec, inputs: Inputs, sae: SaeFacts) -> Cost:
    chosen = len(spec.features or ()) * FLOAT_BYTES
    output = inputs.tokens() * (chosen + spec.top_k * FEATURE_BYTES)
    return Cost(inputs.tokens() * (sae.layer + 1), output)
