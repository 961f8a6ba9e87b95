"""What `features` costs: every prompt up to the SAE's layer, or where a transcoder writes when that is measured."""

from services.catalogue.costs.cost import FLOAT_BYTES, Cost
from services.contracts.features import FeaturesSpec
from services.contracts.inputs import Inputs
from services.contracts.sae import SaeFacts

FEATURE_BYTES = 48
"""One active feature of one token, as JSON."""

PROMPT_FEATURE_BYTES = 120
"""One feature over a prompt, as JSON."""

TOKEN_BYTES = 90
"""One token of the list per token, without its features, as JSON."""

COMPARED_BYTES = 300
"""One feature of a contrast or a search, as JSON."""

POSITION_BYTES = 8
"""One marked position, as JSON."""

PROMOTED_BYTES = 60
"""One promoted or suppressed token, as JSON."""


def features_cost(spec: FeaturesSpec, inputs: Inputs, sae: SaeFacts) -> Cost:
    chosen = sae.features if spec.features is None else len(spec.features)
    top = min(spec.top_k, chosen)
    layer = max(sae.layer, sae.rebuilds[1]) if spec.reconstructs() else sae.layer
    work = inputs.tokens() * (layer + 1)
    if spec.compares():
        row = COMPARED_BYTES + 2 * spec.promoted_logits * PROMOTED_BYTES
        marked = inputs.tokens() * POSITION_BYTES if spec.search else 0
        return Cost(work, top * row + marked)
    tensor = 0 if spec.features is None else chosen * FLOAT_BYTES
    listed = TOKEN_BYTES + top * FEATURE_BYTES if spec.per_token else 0
    effects = min(len(inputs.prompts) * top, chosen) * 2 * spec.promoted_logits * PROMOTED_BYTES
    output = inputs.tokens() * (tensor + listed) + len(inputs.prompts) * top * PROMPT_FEATURE_BYTES + effects
    return Cost(work, output)
