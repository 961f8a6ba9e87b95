"""Which picture a result has, by its kind and its method."""

from services.contracts.ablation import AblationResult
from services.contracts.activations import ActivationsResult
from services.contracts.attention import AttentionResult
from services.contracts.attribution import AttributionResult
from services.contracts.attribution_patching import AttributionPatchingOutcome
from services.contracts.direct_logit_attribution import DirectLogitOutcome
from services.contracts.direction import DirectionResult
from services.contracts.edge_attribution_patching import EdgeAttributionOutcome
from services.contracts.feature_ablation import FeatureAblationResult
from services.contracts.feature_attribution import FeatureAttributionOutcome
from services.contracts.feature_patching import FeaturePatchingResult
from services.contracts.features import FeaturesResult
from services.contracts.generation import GenerationResult
from services.contracts.gradient_x_input import GradientXInputOutcome
from services.contracts.integrated_gradients import IntegratedGradientsOutcome
from services.contracts.intervention import InterventionResult
from services.contracts.job import JobResult
from services.contracts.logit_lens import LogitLensResult
from services.contracts.patching import PatchingResult
from services.contracts.sae_evaluation import SaeEvaluationResult
from services.figures.kinds.ablation import ablation_picture
from services.figures.kinds.activations import activations_picture
from services.figures.kinds.attention import attention_picture
from services.figures.kinds.attribution_patching import attribution_patching_picture
from services.figures.kinds.direct_logit import direct_logit_picture
from services.figures.kinds.direction import direction_picture
from services.figures.kinds.edges import edges_picture
from services.figures.kinds.feature_attribution import feature_attribution_picture
from services.figures.kinds.feature_changes import feature_ablation_picture, feature_patching_picture
from services.figures.kinds.features import features_picture
from services.figures.kinds.generation import generation_picture
from services.figures.kinds.input_tokens import gradient_x_input_picture, integrated_gradients_picture
from services.figures.kinds.intervention import intervention_picture
from services.figures.kinds.logit_lens import logit_lens_picture
from services.figures.kinds.patching import patching_picture
from services.figures.kinds.path_patching import path_patching_picture
from services.figures.kinds.sae_evaluation import sae_evaluation_picture
from services.figures.picture import Picture


def picture_of(result: JobResult, example: int | None) -> Picture:
    """The picture that researchers draw of such a result: of all its examples together, or of one of them (from 0).

    Raises Conflict(NO_FIGURE) and Refused(UNKNOWN_EXAMPLE).
    """
    match result:
        case PatchingResult() | FeaturePatchingResult():
            return _patching_picture(result, example)
        case AttributionResult():
            return _attribution_picture(result, example)
        case AblationResult():
            return ablation_picture(result, example)
        case FeatureAblationResult():
            return feature_ablation_picture(result, example)
        case FeaturesResult():
            return features_picture(result, example)
        case ActivationsResult():
            return activations_picture(result, example)
        case InterventionResult():
            return intervention_picture(result, example)
        case AttentionResult():
            return attention_picture(result, example)
        case LogitLensResult():
            return logit_lens_picture(result, example)
        case SaeEvaluationResult():
            return sae_evaluation_picture(result, example)
        case GenerationResult():
            return generation_picture(result, example)
        case DirectionResult():
            return direction_picture(result, example)


def _patching_picture(result: PatchingResult | FeaturePatchingResult, example: int | None) -> Picture:
    if isinstance(result, FeaturePatchingResult):
        return feature_patching_picture(result, example)
    path = result.method == "path_patching"
    return path_patching_picture(result, example) if path else patching_picture(result, example)


def _attribution_picture(result: AttributionResult, example: int | None) -> Picture:
    match result.attribution:
        case DirectLogitOutcome() as outcome:
            return direct_logit_picture(result, outcome, example)
        case GradientXInputOutcome() as outcome:
            return gradient_x_input_picture(result, outcome, example)
        case IntegratedGradientsOutcome() as outcome:
            return integrated_gradients_picture(result, outcome, example)
        case AttributionPatchingOutcome() as outcome:
            return attribution_patching_picture(result, outcome, example)
        case EdgeAttributionOutcome() as outcome:
            return edges_picture(result, outcome, example)
        case FeatureAttributionOutcome() as outcome:
            return feature_attribution_picture(result, outcome, example)
