"""Batches as branched passes: driven block by block, and only what a readout names unembedded."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from services.engine.base_runs import BaseRun, Runs
from services.engine.driver import Drive, Driver
from services.engine.lane import Lane, RunKey
from services.engine.needs import RunNeeds
from services.engine.outcome import Execution, Outcome
from services.engine.passes import activations_of, captures_of, depth_of, reference_of
from services.engine.reading import read_logits, reported
from services.engine.readout import Loss, Reading, TokenLogits
from services.engine.row import Row
from services.engine.tail import Tail
from services.models.load import LoadedModel

_UNEMBEDDED_TOGETHER = 64


class BranchedPasses:
    """Raises UnknownFamily when the model cannot be driven block by block."""

    execution: Execution = "branched"

    def __init__(self, model: LoadedModel) -> None:
        self._layers = model.facts.layers
        self._driver = Driver(model)
        self._tail = Tail(model)

    @torch.no_grad()
    def run(self, lanes: Sequence[Lane], runs: Runs) -> list[Outcome]:
        order = sorted(range(len(lanes)), key=lambda index: (lanes[index].join, lanes[index].grafted))
        ordered = _aligned([lanes[index] for index in order])
        drive = self._driver.drive(ordered, runs, depth=max(depth_of(lane.row, self._layers) for lane in lanes))
        readings = self._readings(drive, runs)
        outcomes: dict[int, Outcome] = {}
        for place, index in enumerate(order):
            outcomes[index] = Outcome(readings.get(place), drive.agenda.reported_captures(place), self.execution)
        return [outcomes[index] for index in range(len(lanes))]

    @torch.no_grad()
    def record(self, batch: Sequence[tuple[RunKey, RunNeeds]]) -> list[BaseRun]:
        lanes = [Lane(Row(key.tokens, captures=captures_of(needs)), key.owner) for key, needs in batch]
        drive = self._driver.drive(lanes, {}, depth=self._layers, recording=True)
        return [
            BaseRun(
                stem=drive.stem(index) if needs.stem else None,
                activations=activations_of(drive.agenda.captures[index]),
                log_probs={
                    position: self._tail.logits(drive.stream[index, position]).log_softmax(-1)
                    for position in needs.positions
                },
            )
            for index, (_, needs) in enumerate(batch)
        ]

    def _readings(self, drive: Drive, runs: Runs) -> dict[int, Reading]:
        """By lane. Where the whole vocabulary is needed at one position, many lanes are unembedded together."""
        readings: dict[int, Reading] = {}
        together: list[int] = []
        for index, lane in enumerate(drive.lanes):
            match lane.row.readout:
                case None:
                    pass
                case TokenLogits(position, tokens):
                    at = drive.stream[index, position - lane.start]
                    readings[index] = reported(self._tail.logits(at, tokens))
                case Loss() as readout:
                    final = self._final(drive, index, runs)[: len(readout.targets)]
                    readings[index] = read_logits(readout, self._tail.logits(final))
                case _:
                    together.append(index)
        for first in range(0, len(together), _UNEMBEDDED_TOGETHER):
            readings |= self._read_together(drive, together[first : first + _UNEMBEDDED_TOGETHER], runs)
        return readings

    def _read_together(self, drive: Drive, indices: Sequence[int], runs: Runs) -> dict[int, Reading]:
        readouts = [(index, drive.lanes[index], drive.lanes[index].row.readout) for index in indices]
        slots = [readout.position - lane.start for _, lane, readout in readouts if not isinstance(readout, Loss | None)]
        logits = self._tail.logits(drive.stream[list(indices), slots])
        return {
            index: read_logits(readout, own[None], reference_of(lane, runs))
            for (index, lane, readout), own in zip(readouts, logits, strict=True)
            if readout is not None
        }

    def _final(self, drive: Drive, index: int, runs: Runs) -> Float[Tensor, "position d_model"]:
        """The final residual stream of a lane at all its positions; before its start it is the unpatched run's."""
        lane = drive.lanes[index]
        own = drive.stream[index, : lane.reach]
        stem = runs[lane.trunk].stem if lane.start else None
        return own if stem is None else torch.cat([stem.residuals[-1][: lane.start], own])


def _aligned(lanes: Sequence[Lane]) -> list[Lane]:
    """Every lane extended to the left as far as padding would reach: lanes of one length then start together."""
    slots = max(lane.reach for lane in lanes)
    return [replace(lane, start=max(0, len(lane.row.tokens) - slots)) for lane in lanes]
