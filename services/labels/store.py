"""Labels of features: a tenant's own, which nobody else sees, and the operator's, which every tenant sees.

A feature has at most one label of each tenant and one of the operator's. Labels stay until they are deleted or
replaced: unlike jobs they have no time of retention. Every implementation passes the same tests
(`tests/services/labels/`) and raises Unavailable(STORE_UNAVAILABLE) when what stands behind it does not answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.contracts.errors import Conflict, ErrorCode, Unavailable
from services.contracts.feature_card import FeatureLabel


@dataclass(frozen=True)
class LabelBounds:
    """What the store takes; bytes are those of the labels as JSON."""

    labels: int = 50_000
    """Of one tenant on one SAE; the operator's shared ones count by themselves."""
    nbytes: int = 16_000_000
    """The same in bytes."""
    nbytes_in_all: int = 128_000_000
    """Of all labels together, so that they never crowd out job records."""


@dataclass(frozen=True)
class Labelled:
    """A label and the feature it belongs to; `label.shared` tells whose it is."""

    index: int
    label: FeatureLabel


class LabelStore(Protocol):
    def put(self, owner: str, sae: str, labels: Sequence[Labelled]) -> None:
        """Store them all or, where that breaks a bound, none; a later label of a feature replaces the earlier one.

        Raises Conflict(TOO_MANY_LABELS) over a bound of the tenant's, Unavailable(STORE_UNAVAILABLE) over that of all.
        After an Unavailable the labels may be stored or not: repeating the call is harmless.
        """

    def delete(self, owner: str, sae: str, index: int, *, shared: bool) -> bool:
        """Forget the owner's label, or the shared one; whether there was one."""

    def of(self, owner: str, sae: str, indices: Sequence[int]) -> Mapping[int, tuple[FeatureLabel, ...]]:
        """What `owner` sees on these features, the own label before the shared one; features without one are absent."""

    def every(self, owner: str, sae: str) -> tuple[Labelled, ...]:
        """All that `owner` sees on the SAE, by feature, the own label before the shared one."""


def too_many_labels(bounds: LabelBounds) -> Conflict:
    return Conflict(
        ErrorCode.TOO_MANY_LABELS,
        f"a tenant keeps at most {bounds.labels:,} labels and {bounds.nbytes:,} bytes of them on one SAE: nothing was "
        "stored; delete or shorten some first",
    )


def no_room(bounds: LabelBounds) -> Unavailable:
    return Unavailable(
        ErrorCode.STORE_UNAVAILABLE,
        f"the store of labels is full ({bounds.nbytes_in_all:,} bytes over all tenants): nothing was stored",
        retry_after_s=60,
    )
