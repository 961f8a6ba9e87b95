"""The exact check of feature attribution by position: features, and the error, patched at one position each.

1. the cells are the reported features' and the error's, at the asked positions where they change in some subject;
2. those with the largest |mean estimate| are checked, and a seeded sample of the others;
3. exact and estimated effects are means over subjects.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from torch import Tensor

from services.contracts.feature_attribution import CheckedCell, PositionCheck
from services.contracts.sweep import SweptPosition
from services.methods.attribution_check import false_negatives, rank_correlation
from services.methods.feature_estimates import Estimated
from services.methods.feature_parts import PartAt
from services.methods.metric import finite
from services.methods.statistics import RunningMean


@dataclass(frozen=True)
class EstimatedCell:
    """A feature, or the error (None), at the asked position of this number; `estimated` is its mean over subjects."""

    index: int | None
    place: int
    estimated: float

    @property
    def part(self) -> PartAt:
        return PartAt("error" if self.index is None else self.index, self.place)


def cells_of(found: Sequence[Estimated], indices: Tensor) -> Iterator[EstimatedCell]:
    """The cells of these features, in their order, and of the error that change in some subject."""
    nodes: list[int | None] = [*indices.tolist(), None]
    estimates, changing = RunningMean(), np.zeros((), dtype=bool)
    for one in found:
        estimates.add(np.concatenate([one.of_features(indices), one.of_error()[None]]))
        changing = changing | one.changing(indices)
    for node, place in np.argwhere(changing).tolist():
        yield EstimatedCell(nodes[node], place, finite(float(estimates.mean[node, place]), "an estimated effect"))


def compared_by_position(
    top: Sequence[EstimatedCell],
    sampled: Sequence[EstimatedCell],
    exact: Float64[np.ndarray, "subject cell"],
    positions: Sequence[SweptPosition],
) -> PositionCheck:
    """The estimates of the top and the sampled cells, in the order of `exact`, beside its means."""
    cells, means = [*top, *sampled], exact.mean(axis=0)
    estimated = np.array([cell.estimated for cell in cells])
    return PositionCheck(
        rank_correlation=rank_correlation(estimated, means),
        largest_error=float(np.abs(estimated - means).max(initial=0.0)),
        false_negatives=false_negatives(means, len(top)),
        cells=tuple(
            CheckedCell(
                index=cell.index,
                position=positions[cell.place],
                chosen="top" if number < len(top) else "sampled",
                estimated=cell.estimated,
                exact=float(means[number]),
            )
            for number, cell in enumerate(cells)
        ),
    )
