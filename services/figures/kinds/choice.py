"""Which picture a result has, by its kind and its method."""

from services.contracts.activations import ActivationsResult
from services.contracts.attribution import AttributionResult
from services.contracts.features import FeaturesResult
from services.contracts.intervention import InterventionResult
from services.contracts.job import JobResult
from services.contracts.patching import PatchingResult
from services.figures.kinds.activations import activations_picture
from services.figures.kinds.direct_logit import direct_logit_picture
from services.figures.kinds.features import features_picture
from services.figures.kinds.intervention import intervention_picture
from services.figures.kinds.patching import patching_picture
from services.figures.picture import Picture


def picture_of(result: JobResult, example: int | None) -> Picture:
    """The picture that researchers draw of such a result: of all its examples together, or of one of them (from 0).

    Raises Conflict(NO_FIGURE) and Refused(UNKNOWN_EXAMPLE).
    """
    match result:
        case PatchingResult():
            return patching_picture(result, example)
        case AttributionResult():
            return direct_logit_picture(result, result.attribution, example)
        case FeaturesResult():
            return features_picture(result, example)
        case ActivationsResult():
            return activations_picture(result, example)
        case InterventionResult():
            return intervention_picture(result, example)
