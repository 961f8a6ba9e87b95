"""What features do when they are patched exactly, beside what was estimated of them.

1. per base run one run each with the whole site replaced, with the error replaced, and with every feature alone;
2. effects are m(patched) − m(base), the mean over base runs is compared with the estimate.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64

from services.contracts.feature_attribution import CheckedFeature, FeatureCheck
from services.engine.row import Row
from services.methods.attribution_check import false_negatives, rank_correlation
from services.methods.context import MethodContext, SaeInUse
from services.methods.feature_site import Activation, Change, Subject
from services.methods.metric import finite


@dataclass(frozen=True)
class EstimatedFeature:
    """A feature that changes, and the mean over subjects of its estimate."""

    index: int
    estimated: float


def exact_effects(
    changes: Sequence[tuple[Subject, Change]], features: Sequence[int], in_use: SaeInUse, context: MethodContext
) -> Float64[np.ndarray, "subject patch"]:
    """By subject, in the metric's units: the whole site, the error, then every feature alone."""
    effects = np.zeros((len(changes), 2 + len(features)))
    for number, (subject, change) in enumerate(changes):
        readout, value = subject.measured.readout, subject.measured.value
        rows = [Row(subject.base.ids, readout=readout)]
        if change.positions:
            added = _added(change, features, in_use)
            rows += [Row(subject.base.ids, change.add(one), readout=readout) for one in added]
        values = [finite(value(outcome.values()), "the metric of a patched run") for outcome in context.run(rows)]
        effects[number, : len(values) - 1] = np.array(values[1:]) - values[0]
    return effects


def _added(change: Change, features: Sequence[int], in_use: SaeInUse) -> Iterator[Activation]:
    yield change.whole
    yield change.error
    indices = torch.tensor(features, dtype=torch.long)
    directions = in_use.sae.W_dec.cpu()[indices]
    for by_position, direction in zip(change.of_features(indices).T, directions, strict=True):
        yield by_position[:, None] * direction


def compared(
    top: Sequence[EstimatedFeature],
    sampled: Sequence[EstimatedFeature],
    exact: Float64[np.ndarray, "subject patch"],
) -> FeatureCheck:
    """The estimates of the top and the sampled features, in the order of `exact`, beside its means."""
    features, means = [*top, *sampled], exact.mean(axis=0)[2:]
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
