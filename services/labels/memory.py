"""The fake of the label store, for tests."""

from collections.abc import Mapping, Sequence

from services.contracts.feature_card import FeatureLabel
from services.labels.store import LabelBounds, Labelled, no_room, too_many_labels

Place = tuple[str | None, str]
"""Whose (None: the operator's, shared) on which SAE."""


class MemoryLabelStore:
    def __init__(self, bounds: LabelBounds | None = None) -> None:
        self._bounds = bounds or LabelBounds()
        self._labels: dict[Place, dict[int, FeatureLabel]] = {}

    def put(self, owner: str, sae: str, labels: Sequence[Labelled]) -> None:
        after = {place: dict(kept) for place, kept in self._labels.items()}
        for item in labels:
            place = (None if item.label.shared else owner, sae)
            after.setdefault(place, {})[item.index] = item.label
        for place, kept in after.items():
            grown = kept != self._labels.get(place)
            if grown and (len(kept) > self._bounds.labels or _nbytes(kept) > self._bounds.nbytes):
                raise too_many_labels(self._bounds)
        if sum(map(_nbytes, after.values())) > self._bounds.nbytes_in_all:
            raise no_room(self._bounds)
        self._labels = after

    def delete(self, owner: str, sae: str, index: int, *, shared: bool) -> bool:
        return self._labels.get((None if shared else owner, sae), {}).pop(index, None) is not None

    def of(self, owner: str, sae: str, indices: Sequence[int]) -> Mapping[int, tuple[FeatureLabel, ...]]:
        seen = {index: self._seen(owner, sae, index) for index in indices}
        return {index: labels for index, labels in seen.items() if labels}

    def every(self, owner: str, sae: str) -> tuple[Labelled, ...]:
        indices = {index for place in ((owner, sae), (None, sae)) for index in self._labels.get(place, {})}
        return tuple(Labelled(index, label) for index in sorted(indices) for label in self._seen(owner, sae, index))

    def _seen(self, owner: str, sae: str, index: int) -> tuple[FeatureLabel, ...]:
        found = (self._labels.get(place, {}).get(index) for place in ((owner, sae), (None, sae)))
        return tuple(label for label in found if label is not None)


def _nbytes(kept: Mapping[int, FeatureLabel]) -> int:
    return sum(len(label.model_dump_json().encode()) for label in kept.values())
