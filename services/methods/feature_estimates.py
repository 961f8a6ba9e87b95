"""First-order estimates of what features do: Δf_i (d_i · ∂m/∂x), summed over positions, and the same of the error.

The gradient is taken at the base run, or given; effects are m(changed) − m(base) in the metric's units.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from services.engine.row import Gradients, Row
from services.methods.context import MethodContext, SaeInUse
from services.methods.feature_site import Activation, Change, Subject, row_of, site_of
from services.methods.metric import finite

ByPosition = Float[Tensor, "position d_sae"]
ChangeOf = Callable[[Subject, Activation, Activation | None], Change]
"""A change, from the activations of the base run and of the source run, if there is one."""


@dataclass(frozen=True, eq=False)
class Seen:
    """A subject's unpatched runs: the change, both metrics, and ∂m/∂x at the change's positions if it was taken."""

    subject: Subject
    change: Change
    metric: float
    source_metric: float | None
    gradient: Activation | None


@dataclass(frozen=True, eq=False)
class Estimated:
    """One subject: what changes, both metrics, and the estimates; those of features are sparse."""

    subject: Subject
    change: Change
    metric: float
    source_metric: float | None
    features: ByPosition
    error: Float[Tensor, " position"]

    def of_features(self, indices: Tensor) -> Float64[np.ndarray, "feature position"]:
        """At every asked position; zero where nothing changes."""
        return self._placed(self.features.index_select(1, indices).to_dense().T)

    def of_all_features(self) -> Float64[np.ndarray, " position"]:
        (found,) = self._placed(torch.sparse.sum(self.features, dim=1).to_dense()[None])
        return np.asarray(found)

    def of_error(self) -> Float64[np.ndarray, " position"]:
        (found,) = self._placed(self.error[None])
        return np.asarray(found)

    def changing(self, indices: Tensor) -> Bool[np.ndarray, "node position"]:
        """At which asked positions these features change, in their order, and then the error."""
        rows = [self.change.of_features(indices).T, self.change.error.any(dim=1)[None]]
        return np.concatenate([self._placed((row != 0).float()) for row in rows]) > 0

    @property
    def total(self) -> float:
        return float(self.features.values().double().sum() + self.error.double().sum())

    def _placed(self, values: Float[Tensor, "row changed"]) -> Float64[np.ndarray, "row position"]:
        found: Float64[np.ndarray, "row position"] = np.zeros((len(values), len(self.subject.asked)))
        places = [self.subject.asked.index(position) for position in self.subject.positions]
        found[:, places] = values.double().numpy()
        return found


@dataclass(frozen=True)
class EstimatedFeature:
    """A feature that changes, and the mean over subjects of its estimate."""

    index: int
    estimated: float


def look(
    subjects: Sequence[Subject], change: ChangeOf, in_use: SaeInUse, context: MethodContext, *, gradients: bool
) -> Iterator[Seen]:
    """Run the unpatched runs of a few subjects together, and work out what changes."""
    site = site_of(in_use)
    bases = [
        Row(
            subject.base.ids,
            captures=(site,),
            readout=subject.measured.readout,
            gradients=Gradients(subject.measured.objective, (site,)) if gradients else None,
        )
        for subject in subjects
    ]
    sources = [row_of(subject.source, subject, site) for subject in subjects if subject.source is not None]
    outcomes = context.run([*bases, *sources])
    for index, subject in enumerate(subjects):
        base, source = outcomes[index], outcomes[len(subjects) + index] if sources else None
        value = subject.measured.value
        yield Seen(
            subject=subject,
            change=change(subject, base.captures[site], None if source is None else source.captures[site]),
            metric=finite(value(base.values()), "the metric on the base run"),
            source_metric=None if source is None else finite(value(source.values()), "the metric on the source run"),
            gradient=base.gradients[site][list(subject.positions)].flatten(1) if gradients else None,
        )


def estimated(seen: Seen, gradient: Activation | None, in_use: SaeInUse) -> Estimated:
    """The estimates by this gradient at the change's positions; zeros without one."""
    W_dec, change = in_use.sae.W_dec.cpu(), seen.change
    slope = torch.zeros_like(change.whole) if gradient is None else gradient.to(W_dec)
    return Estimated(
        subject=seen.subject,
        change=change,
        metric=seen.metric,
        source_metric=seen.source_metric,
        features=(change.features.to_dense() * (slope @ W_dec.T)).to_sparse(),
        error=torch.einsum("pd,pd->p", change.error, slope),
    )


def changed_features(found: Sequence[Estimated]) -> list[int]:
    """The features that change somewhere, in order."""
    return sorted({feature for one in found for feature in one.change.features.indices()[1].tolist()})


def ranked(found: Sequence[Estimated], in_use: SaeInUse) -> list[EstimatedFeature]:
    """Every feature that changes somewhere, by the magnitude of its mean effect."""
    sums = torch.zeros(in_use.sae.d_sae, dtype=torch.float64)
    for one in found:
        sums.index_add_(0, one.features.indices()[1], one.features.values().double())
    means = (sums / len(found)).tolist()
    features = (EstimatedFeature(index, means[index]) for index in changed_features(found))
    return sorted(features, key=lambda one: -abs(one.estimated))
