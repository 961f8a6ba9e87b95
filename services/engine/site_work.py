"""What a batch of rows does at one site of one layer: its writes, then its reads, as few tensor operations.

A row in a batch is a lane: its index, and the absolute position that its first slot stands for. Writes of all lanes
that do the same kind of thing are gathered into one indexed assignment.
"""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from services.contracts.site import SiteName
from services.engine.row import FeatureChange, Operation

ATTENTION_SITES = (SiteName.ATTN_SCORES, SiteName.PATTERN)
"""Their activations are [row, head, query, key] in a hook; everyone else's are [row, position, ...]."""


@dataclass(frozen=True, eq=False)
class Write:
    """Change `slots` of lane `lane`. `wave` orders the writes of one lane at one site; equal waves commute."""

    lane: int
    slots: Sequence[int]
    head: int | None
    wave: int
    operation: Operation
    value: Float[Tensor, "slot ..."] | float | FeatureChange

    def kind(self) -> tuple[Hashable, ...]:
        """Writes of one kind can be done together: strengths may differ, features and sites not."""
        match self.value:
            case Tensor():
                value: Hashable = tuple(self.value.shape[1:])
            case FeatureChange(dictionary, added, clamped, projected_out):
                changed = (tuple(index for index, _ in some) for some in (added, clamped))
                value = (id(dictionary), *changed, projected_out)
            case number:
                value = number
        return self.wave, self.operation, self.head is None, value


@dataclass(frozen=True, eq=False)
class Read:
    """Copy `slots` of lane `lane`; attention sites end at `keys`, the row's own length."""

    lane: int
    slots: Sequence[int]
    head: int | None
    keys: int


class SiteWork:
    """The writes and reads of a batch at one site of one layer."""

    def __init__(self, site: SiteName, writes: Sequence[Write], reads: Sequence[Read]) -> None:
        self._site = site
        self._reads = reads
        self._groups: dict[tuple[Hashable, ...], list[Write]] = defaultdict(list)
        for write in sorted(writes, key=lambda write: write.wave):
            self._groups[write.kind()].append(write)

    def write(self, activation: Float[Tensor, "row ..."]) -> Float[Tensor, "row ..."]:
        """The activation with every write done; the one given stays as it is."""
        if not self._groups:
            return activation
        changed = activation.clone()
        view = self._by_position(changed)
        for group in self._groups.values():
            _write_together(view, group)
        return changed

    def read(self, activation: Float[Tensor, "row ..."]) -> list[Float[Tensor, "slot ..."]]:
        """Copies of what the reads ask for, in their order."""
        view = self._by_position(activation)
        return [self._take(view, read) for read in self._reads]

    def _by_position(self, activation: Tensor) -> Tensor:
        return activation.transpose(1, 2) if self._site in ATTENTION_SITES else activation

    def _take(self, view: Tensor, read: Read) -> Tensor:
        slots = torch.as_tensor(read.slots, device=view.device)
        taken = view[read.lane, slots] if read.head is None else view[read.lane, slots, read.head]
        if self._site not in ATTENTION_SITES:
            return taken
        taken = taken[..., : read.keys].clone()
        if self._site is SiteName.ATTN_SCORES:  # a mask may be the lowest finite number: it means minus infinity
            taken[taken <= torch.finfo(taken.dtype).min / 2] = -torch.inf
        return taken


def _write_together(view: Tensor, group: Sequence[Write]) -> None:
    first = group[0]
    value: Any = first.value
    if isinstance(value, FeatureChange):
        value = _changes(group)
    if isinstance(value, Tensor):
        value = torch.cat([write.value for write in group if isinstance(write.value, Tensor)])
        if value.shape[-1] < view.shape[-1]:  # the keys of a row that is shorter than its batch
            view = view[..., : value.shape[-1]]
    index = [[write.lane for write in group for _ in write.slots], [slot for write in group for slot in write.slots]]
    if first.head is not None:
        index.append([write.head for write in group for _ in write.slots])  # type: ignore[misc]  # of one kind
    where = tuple(torch.tensor(axis, device=view.device) for axis in index)
    match first.operation:
        case "set":
            view[where] = value
        case "add":
            view[where] += value
        case "scale":
            view[where] *= value
        case "project_out":
            direction = value / value.norm(dim=-1, keepdim=True)
            view[where] -= (view[where] * direction).sum(-1, keepdim=True) * direction
        case "change_features":
            view[where] = _with_features_changed(view[where], first.value, *value)


def _changes(group: Sequence[Write]) -> tuple[Float[Tensor, "slot added"], Float[Tensor, "slot clamped"]]:
    """By how much, and to what, every slot's features change: float32 on the CPU."""
    changes = [write.value for write in group for _ in write.slots if isinstance(write.value, FeatureChange)]
    added, clamped = (
        torch.tensor([[amount for _, amount in some] for some in several], dtype=torch.float32)
        for several in ([change.added for change in changes], [change.clamped for change in changes])
    )
    return added, clamped


def _with_features_changed(
    activation: Float[Tensor, "slot ..."],
    like: Any,
    added: Float[Tensor, "slot added"],
    clamped: Float[Tensor, "slot clamped"],
) -> Float[Tensor, "slot ..."]:
    """`like` is any change of the group: the same dictionary and features as all others, amounts of its own."""
    dictionary, x = like.dictionary, activation.flatten(1)
    decoder = dictionary.W_dec
    change = torch.zeros_like(x, dtype=decoder.dtype)
    if like.added:
        change = change + added.to(decoder) @ decoder[[index for index, _ in like.added]]
    if like.clamped:
        indices = tuple(index for index, _ in like.clamped)
        change = change + (clamped.to(decoder) - dictionary.encode_columns(x, indices)) @ decoder[list(indices)]
    if like.projected_out:
        axes = _axes(decoder[list(like.projected_out)])
        change = change - x.to(decoder) @ axes.T @ axes
    changed = torch.where(dictionary.within_norm(x)[:, None], x + change.to(x), x)
    return changed.reshape(activation.shape)


def _axes(rows: Float[Tensor, "feature d_model"]) -> Float[Tensor, "axis d_model"]:
    """An orthonormal basis of the span of `rows`, none of them 0; parallel rows share an axis."""
    _, sizes, axes = torch.linalg.svd(rows / rows.norm(dim=1, keepdim=True), full_matrices=False)
    spanned: Tensor = axes[sizes > 1e-5 * sizes[0]]
    return spanned
