"""Which file runs which specification: the one place where a new analysis is registered."""

from services.contracts.ablation import AblationSpec
from services.contracts.activations import ActivationsSpec
from services.contracts.attribution import AttributionSpec
from services.contracts.features import FeaturesSpec
from services.contracts.intervention import InterventionSpec
from services.contracts.job import JobResult, JobSpec
from services.contracts.patching import ActivationPatching, PatchingSpec
from services.contracts.path_patching import PathPatching
from services.methods import (
    ablation,
    activation_patching,
    activations,
    direct_logit_attribution,
    features,
    intervention,
    path_patching,
)
from services.methods.context import MethodContext


def run_method(spec: JobSpec, context: MethodContext) -> JobResult:
    """Run a specification's analysis."""
    match spec:
        case PatchingSpec():
            return _run_patching(spec, context)
        case AttributionSpec():
            return direct_logit_attribution.run(spec, context)
        case FeaturesSpec():
            return features.run(spec, context)
        case AblationSpec():
            return ablation.run(spec, context)
        case InterventionSpec():
            return intervention.run(spec, context)
        case ActivationsSpec():
            return activations.run(spec, context)


def _run_patching(spec: PatchingSpec, context: MethodContext) -> JobResult:
    match spec.method:
        case ActivationPatching() as method:
            return activation_patching.run(spec, method, context)
        case PathPatching() as method:
            return path_patching.run(spec, method, context)
