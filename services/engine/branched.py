"""Batches as branched passes: driven block by block, and only what a readout names unembedded."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from services.engine.base_runs import BaseRun, Runs
from services.engine.driver import Driver
from services.engine.lane import Lane, RunKey
from services.engine.needs import RunNeeds
from services.engine.outcome import Execution, Outcome
from services.engine.passes import activations_of, captures_of, depth_of
from services.engine.readings import read_all
from services.engine.row import Row
from services.engine.tail import Tail
from services.models.load import LoadedModel


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
        readings = read_all(self._tail, drive, runs)
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


def _aligned(lanes: Sequence[Lane]) -> list[Lane]:
    """Every lane extended to the left as far as padding would reach: lanes of one length then start together.

    But not a step of a continuation: what it changed at earlier positions is in its past alone.
    """
    slots = max(lane.reach for lane in lanes)
    return [
        lane if lane.past is not None else replace(lane, start=max(0, len(lane.row.tokens) - slots)) for lane in lanes
    ]
