"""Which file runs which specification: the one place where a new analysis is registered."""

from services.contracts.ablation import AblationSpec
from services.contracts.activations import ActivationsSpec
from services.contracts.attention import AttentionSpec
from services.contracts.attribution import AttributionResult, AttributionSpec
from services.contracts.attribution_patching import AttributionPatching
from services.contracts.direct_logit_attribution import DirectLogitAttribution
from services.contracts.direction import DirectionSpec
from services.contracts.edge_attribution_patching import EdgeAttributionPatching
from services.contracts.feature_ablation import FeatureAblation
from services.contracts.feature_attribution import FeatureAttribution
from services.contracts.feature_patching import FeaturePatching
from services.contracts.features import FeaturesSpec
from services.contracts.generation import GenerationSpec
from services.contracts.gradient_x_input import GradientXInput
from services.contracts.integrated_gradients import IntegratedGradients
from services.contracts.intervention import InterventionSpec
from services.contracts.job import JobResult, JobSpec
from services.contracts.logit_lens import LogitLensSpec
from services.contracts.patching import ActivationPatching, PatchingSpec
from services.contracts.path_patching import PathPatching
from services.contracts.sae_evaluation import SaeEvaluationSpec
from services.methods import (
    ablation,
    activation_patching,
    activations,
    attention,
    attribution_patching,
    direct_logit_attribution,
    direction,
    edge_attribution_patching,
    feature_ablation,
    feature_attribution,
    feature_patching,
    features,
    generation,
    gradient_x_input,
    integrated_gradients,
    intervention,
    logit_lens,
    path_patching,
    sae_evaluation,
)
from services.methods.context import MethodContext


def run_method(spec: JobSpec, context: MethodContext) -> JobResult:
    """Run a specification's analysis, at a desk."""
    with context.desks.seat(context.ticket):
        return _run(spec, context)


def _run(spec: JobSpec, context: MethodContext) -> JobResult:
    match spec:
        case PatchingSpec():
            return _run_patching(spec, context)
        case AttributionSpec():
            return _run_attribution(spec, context)
        case FeaturesSpec():
            return features.run(spec, context)
        case AblationSpec():
            return _run_ablation(spec, context)
        case InterventionSpec():
            return intervention.run(spec, context)
        case ActivationsSpec():
            return activations.run(spec, context)
        case LogitLensSpec():
            return logit_lens.run(spec, context)
        case GenerationSpec():
            return generation.run(spec, context)
        case DirectionSpec():
            return direction.run(spec, context)
        case AttentionSpec():
            return attention.run(spec, context)
        case SaeEvaluationSpec():
            return sae_evaluation.run(spec, context)


def _run_attribution(spec: AttributionSpec, context: MethodContext) -> AttributionResult:
    match spec.method:
        case DirectLogitAttribution():
            return direct_logit_attribution.run(spec, context)
        case GradientXInput():
            return gradient_x_input.run(spec, context)
        case IntegratedGradients() as method:
            return integrated_gradients.run(method, spec, context)
        case AttributionPatching() as method:
            return attribution_patching.run(method, spec, context)
        case EdgeAttributionPatching() as method:
            return edge_attribution_patching.run(method, spec, context)
        case FeatureAttribution() as method:
            return feature_attribution.run(method, spec, context)


def _run_patching(spec: PatchingSpec, context: MethodContext) -> JobResult:
    match spec.method:
        case ActivationPatching() as method:
            return activation_patching.run(spec, method, context)
        case PathPatching() as method:
            return path_patching.run(spec, method, context)
        case FeaturePatching() as method:
            return feature_patching.run(method, spec, context)


def _run_ablation(spec: AblationSpec, context: MethodContext) -> JobResult:
    match spec.method:
        case FeatureAblation() as method:
            return feature_ablation.run(method, spec, context)
        case _ as method:
            return ablation.run(spec, method, context)
