"""What a job will cost, before it is queued: engine work in token-layers, and the bytes of its result.

A token-layer is one position through one block, the unit in which the engine plans, shares and bills its work. The
estimate follows the engine's own rule: a patched run is computed from the patched layer and the first changed position
on (all of it where the embedding changes), and its unpatched run once. What is the same whatever the job asks for
(unembedding, tokens' texts) is left out.
"""

from services.catalogue.costs.ablation import ablation_cost
from services.catalogue.costs.activations import activations_cost
from services.catalogue.costs.attention import attention_cost
from services.catalogue.costs.attribution import attribution_cost
from services.catalogue.costs.cost import Cost
from services.catalogue.costs.direction import direction_cost
from services.catalogue.costs.features import features_cost
from services.catalogue.costs.generation import generation_cost
from services.catalogue.costs.intervention import intervention_cost
from services.catalogue.costs.logit_lens import logit_lens_cost
from services.catalogue.costs.patching import patching_cost
from services.catalogue.costs.sae_evaluation import sae_evaluation_cost
from services.contracts.ablation import AblationSpec
from services.contracts.activations import ActivationsSpec
from services.contracts.attention import AttentionSpec
from services.contracts.attribution import AttributionSpec
from services.contracts.direction import DirectionSpec
from services.contracts.features import FeaturesSpec
from services.contracts.generation import GenerationSpec
from services.contracts.inputs import Inputs
from services.contracts.intervention import InterventionSpec
from services.contracts.job import JobSpec
from services.contracts.logit_lens import LogitLensSpec
from services.contracts.model import ModelFacts
from services.contracts.patching import PatchingSpec
from services.contracts.sae import SaeFacts
from services.contracts.sae_evaluation import SaeEvaluationSpec

__all__ = ["Cost", "estimate"]


def estimate(spec: JobSpec, inputs: Inputs, model: ModelFacts, sae: SaeFacts | None) -> Cost:
    """The cost of a job whose inputs have been read."""
    match spec:
        case PatchingSpec():
            return patching_cost(spec, inputs, model, sae)
        case AttributionSpec():
            return attribution_cost(spec, inputs, model, sae)
        case AblationSpec():
            return ablation_cost(spec, inputs, model, sae)
        case InterventionSpec():
            return intervention_cost(spec, inputs, model)
        case GenerationSpec():
            return generation_cost(spec, inputs, model, sae)
        case SaeEvaluationSpec():
            assert sae is not None
            return sae_evaluation_cost(spec, inputs, model, sae)
        case _:
            return _reading(spec, inputs, model, sae)


def _reading(
    spec: FeaturesSpec | ActivationsSpec | LogitLensSpec | AttentionSpec | DirectionSpec,
    inputs: Inputs,
    model: ModelFacts,
    sae: SaeFacts | None,
) -> Cost:
    """Of what only looks at unpatched runs."""
    match spec:
        case FeaturesSpec():
            assert sae is not None
            return features_cost(spec, inputs, sae)
        case ActivationsSpec():
            return activations_cost(spec, inputs, model)
        case LogitLensSpec():
            return logit_lens_cost(spec, inputs, model)
        case DirectionSpec():
            return direction_cost(spec, inputs, model)
        case AttentionSpec():
            return attention_cost(spec, inputs, model)
