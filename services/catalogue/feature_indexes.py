"""The feature indexes of the served SAEs, each opened when first asked for, and what can be asked of one."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from services.catalogue.catalogue import Catalogue, sae_folder
from services.contracts.errors import ErrorCode, NotFound
from services.contracts.feature_card import FeatureCard, FeatureSummary

INDEX_FILE = "features.sqlite"

SortKey = Literal["index", "density", "max_activation", "mean_activation"]


@dataclass(frozen=True)
class FeatureFilter:
    """Which features to list: all conditions hold. `only` and `but` are indices; texts are found in any case."""

    min_density: float | None = None
    max_density: float | None = None
    min_max_activation: float | None = None
    max_max_activation: float | None = None
    promoted: str | None = None
    promoted_id: int | None = None
    """A token's string among those that the feature promotes."""
    text: str | None = None
    """Text within one of the feature's contexts."""
    only: frozenset[int] | None = None
    but: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if self.only is not None and self.but:
            object.__setattr__(self, "only", self.only - self.but)


@dataclass(frozen=True)
class FeatureSort:
    by: SortKey = "index"
    descending: bool = False


@dataclass(frozen=True)
class FeaturePage:
    """`cursor` is opaque and null on the last page."""

    features: tuple[FeatureSummary, ...]
    cursor: str | None


class FeatureReader(Protocol):
    """One SAE's index; any number of threads may read it. Labels are not its business."""

    def card(self, index: int) -> FeatureCard:
        """Raises NotFound(UNKNOWN_FEATURE)."""

    def list(self, where: FeatureFilter, sort: FeatureSort, cursor: str | None, limit: int) -> FeaturePage:
        """Raises Refused(INVALID_REQUEST) on a cursor that is not of this list."""


@dataclass
class FeatureIndexes:
    catalogue: Catalogue
    open_index: Callable[[Path], FeatureReader]
    _opened: dict[str, FeatureReader] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def of(self, sae_id: str) -> FeatureReader:
        """The index of an SAE; raises NotFound(UNKNOWN_SAE | FEATURE_INDEX_MISSING) and what `open_index` raises."""
        self.catalogue.sae(sae_id)
        opened = self._opened.get(sae_id)
        if opened is not None:
            return opened
        with self._lock:
            if sae_id not in self._opened:
                path = sae_folder(self.catalogue.home, sae_id) / INDEX_FILE
                if not path.is_file():
                    message = f"{sae_id} has no feature index: the operator makes one with `lensd-worker index-sae`"
                    raise NotFound(ErrorCode.FEATURE_INDEX_MISSING, message)
                self._opened[sae_id] = self.open_index(path)
            return self._opened[sae_id]
