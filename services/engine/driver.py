"""Branched forward passes: a patched run equals its unpatched run below the patched layer and before the patched
position, so only the rest of it is computed.

1. Lanes come ordered by the block before which they join; the blocks are driven by hand, one after another.
2. Before each block the joining lanes enter the batch with their unpatched run's residual stream, from their start on.
3. Attention finds the unpatched run's keys and values before a lane's start; a continuation's own, before its step.
4. Hooks do the batch's work at the inner sites, the driver itself does it on the residual stream.
5. After the last block only what a readout names is unembedded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from services.contracts.site import SiteName
from services.engine.agenda import Agenda
from services.engine.base_runs import RESIDUALS, Runs, Stem
from services.engine.branch_cache import BranchCache
from services.engine.giving_up import give_up_if_unwanted
from services.engine.lane import Lane, Place, padded
from services.engine.opening import BlockCall, Opening, Openings
from services.models.hooks import Hook, hook_points, hooked
from services.models.load import LoadedModel

_FRAME_STEP = 32
_DRIVEN = (*RESIDUALS, SiteName.RESID_MID)
"""Sites whose work is done by the driver, not by a hook of their own."""


@dataclass
class Drive:
    """One batch on its way through the blocks.

    `residual` is the stream of the lanes that have joined so far; when `recording`, `past` keeps it before every block
    and after the last.
    """

    lanes: Sequence[Lane]
    agenda: Agenda
    slots: int
    cache: BranchCache
    recording: bool
    residual: Float[Tensor, "lane slot d_model"] | None = None
    past: list[Float[Tensor, "lane slot d_model"]] = field(default_factory=list)

    @property
    def stream(self) -> Float[Tensor, "lane slot d_model"]:
        """The residual stream where the drive is: at its end, the final one."""
        assert self.residual is not None
        return self.residual

    def perform(self, place: Place) -> None:
        self.residual = self.agenda.perform(place, self.stream)

    def stem(self, lane: int) -> Stem:
        """The record of an ungrafted lane."""
        length = len(self.lanes[lane].row.tokens)
        return Stem(
            residuals=[residual[lane, :length].clone() for residual in self.past],
            keys=[keys[lane, :, :length].clone() for keys in self.cache.fresh_keys],
            values=[values[lane, :, :length].clone() for values in self.cache.fresh_values],
        )

    def keep_pasts(self) -> None:
        """Hand every continuation the keys and values of the positions it just ran."""
        for index, lane in enumerate(self.lanes):
            if lane.past is not None:
                keys = [layer[index, :, : lane.reach] for layer in self.cache.fresh_keys]
                values = [layer[index, :, : lane.reach] for layer in self.cache.fresh_values]
                lane.past.keep(lane.start, keys, values)


class Driver:
    """Drives the blocks of one model.

    Raises:
        UnknownFamily: the model cannot be driven block by block.
    """

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._blocks = list(model.bridge.blocks)
        self._points = hook_points(model.bridge)
        self._openings = Openings(model)
        self._frames: dict[bool, Opening] = {}

    @torch.no_grad()
    def drive(self, lanes: Sequence[Lane], runs: Runs, *, depth: int, recording: bool = False) -> Drive:
        """Take `lanes`, ordered by where they join with ungrafted ones first, through the first `depth` blocks."""
        slots = max(lane.reach for lane in lanes)
        positions = self._positions(lanes, slots)
        keys = int(positions.max()) + 1
        stems = [runs[lane.trunk].stem if lane.grafted else None for lane in lanes]
        keeping = any(lane.past is not None for lane in lanes) and self._openings.places_tokens
        known = [lane.past if lane.past and lane.start else stem for lane, stem in zip(lanes, stems, strict=True)]
        cache = BranchCache(known, [lane.start for lane in lanes], keys, recording=recording or keeping)
        drive = Drive(lanes, Agenda(self._model, lanes, runs), slots, cache, recording)
        calls = self._calls(keys)
        with hooked(self._hooks(drive)):
            self._enter_ungrafted(drive, positions)
            self._through_the_blocks(drive, calls, stems, positions, depth)
        if keeping:
            drive.keep_pasts()
        return drive

    def _through_the_blocks(
        self,
        drive: Drive,
        calls: Sequence[BlockCall],
        stems: Sequence[Stem | None],
        positions: Int[Tensor, "#lane slot"],
        depth: int,
    ) -> None:
        keys = drive.cache.keys
        memo: dict[int, Any] = {}
        for layer in range(drive.lanes[0].join, depth + 1):
            give_up_if_unwanted()
            entered = 0 if drive.residual is None else len(drive.residual)
            self._enter(drive, stems, layer)
            if len(positions) > 1 and len(drive.stream) > entered:
                memo = {}
            if layer > 0:
                drive.perform((SiteName.RESID_POST, layer - 1))
            if layer < len(self._blocks):
                drive.perform((SiteName.RESID_PRE, layer))
            if drive.recording:
                drive.past.append(drive.stream)
            if layer < depth:
                arguments = calls[layer].at(positions[: len(drive.stream)], keys, drive.cache, memo)
                output = self._blocks[layer](drive.stream, **arguments)
                drive.residual = output[0] if isinstance(output, tuple) else output

    def _enter_ungrafted(self, drive: Drive, positions: Int[Tensor, "#lane slot"]) -> None:
        entering = [lane for lane in drive.lanes if not lane.grafted]
        if entering:
            tokens = padded([lane.row.tokens[lane.start :] for lane in entering], self._model.device, drive.slots)
            later = any(lane.start for lane in entering)
            placed = positions.expand(len(drive.lanes), -1)[: len(entering)] if later else None
            drive.residual = self._openings.open(tokens, placed).residual

    def _enter(self, drive: Drive, stems: Sequence[Stem | None], layer: int) -> None:
        """The grafted lanes that join before `layer` follow those already there."""
        entering = [
            _padded(stem.residuals[layer][lane.start :], drive.slots)
            for lane, stem in zip(drive.lanes, stems, strict=True)
            if stem is not None and lane.join == layer
        ]
        if entering:
            there = [] if drive.residual is None else [drive.residual]
            drive.residual = torch.cat([*there, torch.stack(entering)])

    def _hooks(self, drive: Drive) -> list[tuple[HookPoint, Hook]]:
        """The inner sites' work, and resid_mid's behind attn_out's."""
        perform = drive.agenda.perform
        places = drive.agenda.places()
        hooks: list[tuple[HookPoint, Hook]] = [
            (self._points[place], partial(perform, place)) for place in places if place[0] not in _DRIVEN
        ]
        for site, layer in places:
            if site is SiteName.RESID_MID and layer is not None:
                hooks.append((self._points[SiteName.ATTN_OUT, layer], _resid_mid_hook(drive, layer)))
        return hooks

    def _positions(self, lanes: Sequence[Lane], slots: int) -> Int[Tensor, "#lane slot"]:
        """Absolute positions of the slots; a single row when all lanes start together."""
        starts = torch.tensor([lane.start for lane in lanes], device=self._model.device)
        if bool((starts == starts[0]).all()):
            starts = starts[:1]
        return starts[:, None] + torch.arange(slots, device=self._model.device)

    def _calls(self, keys: int) -> Sequence[BlockCall]:
        """What the blocks are called with, for at least `keys` positions; the last answers are kept."""
        is_long = self._model.is_long(keys)
        frame = self._frames.get(is_long)
        if frame is None or frame.residual.shape[1] < keys:
            most = self._model.facts.context if is_long else self._model.short_context or self._model.facts.context
            length = min(-(-keys // _FRAME_STEP) * _FRAME_STEP, max(keys, most))
            frame = self._openings.open(torch.zeros((1, length), dtype=torch.long, device=self._model.device))
            self._frames[is_long] = frame
        return frame.calls


def _resid_mid_hook(drive: Drive, layer: int) -> Hook:
    def write(attn_out: Tensor) -> Tensor:
        return drive.agenda.perform_resid_mid(layer, drive.stream, attn_out)

    return write


def _padded(residual: Float[Tensor, "position d_model"], slots: int) -> Float[Tensor, "slot d_model"]:
    return torch.nn.functional.pad(residual[:slots], (0, 0, 0, slots - len(residual[:slots])))
