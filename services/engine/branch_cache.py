"""Stands where blocks expect a key-value cache: before a lane's start it serves its unpatched run's keys and values, or
those that a continuation has kept.

Key indices are absolute positions, so that attention patterns mean the same in a branch as in a whole run.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from services.engine.base_runs import Stem
from services.engine.past import Past

_Fresh = Float[Tensor, "row kv_head slot d_head"]
_Heads = Float[Tensor, "row kv_head key d_head"]


class BranchCache:
    """Keys and values of a batch of lanes; `stems` has one entry per lane, None where the lane starts at 0.

    `starts` are the lanes' first positions and `keys` the positions that any of them may attend to. What the blocks
    computed themselves is kept in `fresh_keys` and `fresh_values` when `recording`.
    """

    def __init__(
        self, stems: Sequence[Stem | Past | None], starts: Sequence[int], keys: int, *, recording: bool
    ) -> None:
        self._stems = stems
        self._starts = starts
        self.keys = keys
        self._recording = recording
        self.fresh_keys: list[_Fresh] = []
        self.fresh_values: list[_Fresh] = []

    def update(self, key: _Fresh, value: _Fresh, layer_idx: int, *_: Any, **__: Any) -> tuple[_Heads, _Heads]:
        """What attention sees, given what the lanes now in the batch computed; transformers' cache protocol."""
        if self._recording:
            self.fresh_keys.append(key)
            self.fresh_values.append(value)
        lanes = len(key)
        stems = self._stems[:lanes]
        return (
            self._joined(key, [None if stem is None else stem.keys[layer_idx] for stem in stems]),
            self._joined(value, [None if stem is None else stem.values[layer_idx] for stem in stems]),
        )

    def _joined(self, fresh: _Fresh, known: Sequence[Tensor | None]) -> _Heads:
        starts = self._starts[: len(known)]
        if max(starts) == 0:
            return fresh
        if min(starts) == max(starts):
            return torch.cat([_prefixes(known, starts[0]), fresh], dim=2)
        return self._scattered(fresh, known, starts)

    def _scattered(self, fresh: _Fresh, known: Sequence[Tensor | None], starts: Sequence[int]) -> _Heads:
        lanes, heads, slots, width = fresh.shape
        joined = fresh.new_zeros((lanes, heads, self.keys, width))
        for lane, (prefix, start) in enumerate(zip(known, starts, strict=True)):
            if prefix is not None:
                joined[lane, :, :start] = prefix[:, :start]
            joined[lane, :, start : start + slots] = fresh[lane]
        return joined


def _prefixes(known: Sequence[Tensor | None], start: int) -> _Heads:
    """The first `start` positions of every lane; one view when all lanes grow on one run."""
    prefixes = [prefix[:, :start] for prefix in known if prefix is not None]
    if all(prefix is known[0] for prefix in known):
        return prefixes[0].expand(len(known), -1, -1, -1)
    return torch.stack(prefixes)
