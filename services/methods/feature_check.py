"""What features do when they are patched exactly, beside what was estimated of them: means over base runs compared."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from services.contracts.feature_attribution import CheckedFeature, FeatureCheck
from services.contracts.feature_site import EstimateCheck
from services.methods.attribution_check import false_negatives, rank_correlation
from services.methods.feature_estimates import EstimatedFeature
from services.methods.metric import finite


def compared(
    top: Sequence[EstimatedFeature],
    sampled: Sequence[EstimatedFeature],
    exact: Float64[np.ndarray, "subject feature"],
) -> FeatureCheck:
    """The estimates of the top and the sampled features, in the order of `exact`, beside its means."""
    features, means = [*top, *sampled], exact.mean(axis=0)
    estimated = np.array([feature.estimated for feature in features])
    return FeatureCheck(
        rank_correlation=rank_correlation(estimated, means),
        largest_error=float(np.abs(estimated - means).max(initial=0.0)),
        false_negatives=false_negatives(means, len(top)),
        cells=tuple(
            CheckedFeature(
                index=feature.index,
                chosen="top" if number < len(top) else "sampled",
                estimated=feature.estimated,
                exact=float(means[number]),
            )
            for number, feature in enumerate(features)
        ),
    )


def compared_cells(
    estimates: Float64[np.ndarray, "subject feature *position"], exact: Float64[np.ndarray, "subject feature *position"]
) -> EstimateCheck:
    """Means over subjects of both, cell by cell."""
    one, other = estimates.mean(axis=0).reshape(-1), exact.mean(axis=0).reshape(-1)
    return EstimateCheck(
        rank_correlation=rank_correlation(one, other),
        largest_error=finite(float(np.abs(one - other).max(initial=0.0)), "an estimated effect"),
    )
