"""What `sae_evaluation` costs: every prompt up to the SAE's layer, then a clean run and three spliced ones for each way
to treat tokens over the norm threshold, every position of all of them unembedded."""

from services.catalogue.costs.cost import FLOAT_BYTES, Cost, unembedding_token_layers
from services.catalogue.costs.rows import PlannedRow, Touch, work
from services.contracts.inputs import Inputs
from services.contracts.model import ModelFacts
from services.contracts.sae import SaeFacts
from services.contracts.sae_evaluation import SaeEvaluationSpec
from services.contracts.site import SiteName

SPLICES = 3
"""With the SAE, with zeros, with the mean."""


def sae_evaluation_cost(spec: SaeEvaluationSpec, inputs: Inputs, model: ModelFacts, sae: SaeFacts) -> Cost:
    (site, layer), end = sae.rebuilds, Touch(SiteName.RESID_POST, model.layers - 1, 0)
    here = Touch(site, layer, 0)
    read = tuple(dict.fromkeys((Touch(sae.site, sae.layer, 0), here)))
    depth = layer if site is SiteName.RESID_PRE else layer + 1
    filters = len(spec.filters(sae.norm_threshold))
    reading, measuring = [], []
    for prompt in inputs.prompts:
        reading.append(PlannedRow(prompt.ids, depth, read))
        measuring.append(PlannedRow(prompt.ids, model.layers, (end,)))
        measuring += [PlannedRow(prompt.ids, model.layers, (here, end))] * (SPLICES * filters)
    unembedded = inputs.tokens() * (1 + SPLICES * filters) * unembedding_token_layers(model)
    output = filters * sae.features * FLOAT_BYTES if spec.densities else 0
    if read[0].join == model.layers:  # reading there records the unpatched runs that the others are grown on
        return Cost(work([*reading, *measuring], model.layers) + unembedded, output)
    return Cost(work(reading, model.layers) + work(measuring, model.layers) + unembedded, output)
