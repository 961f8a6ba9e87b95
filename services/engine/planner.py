"""From rows to tasks: from where each has to be computed, what it costs, and which may share a batch.

1. A row differs from its own tokens' unpatched run from the first position and the lowest layer on that it changes;
   an activation of a run whose tokens are the same so far is no change.
2. Growing it on that run pays when the rows that share it save more than the run costs.
3. Rows share a batch when they go equally deep and have about equally many positions to compute.

Costs are in token-layers: one position through one block, and thrice that with the way back.
Rows with gradients run whole.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from services.contracts.site import SiteName
from services.engine.lane import Lane, RunKey, joining_layer
from services.engine.needs import needs_of
from services.engine.passes import depth_of
from services.engine.readout import Loss
from services.engine.row import FromRun, Row, Site
from services.engine.scheduler import Task
from services.engine.ticket import JobTicket
from services.models.load import LoadedModel

_BACKWARD = 2
"""What a backward pass costs, in forward passes."""


def plan(model: LoadedModel, rows: Sequence[Row], ticket: JobTicket) -> list[Task]:
    """One task per row, in the order of the rows; their `order` says in which they are best run."""
    layers = model.facts.layers
    lanes = _placed([Lane(row, ticket.owner) for row in rows], layers)
    foreseen = needs_of(lanes)
    rank = {lane.trunk: rank for rank, lane in reversed(list(enumerate(lanes)))}
    tasks = []
    for index, lane in enumerate(lanes):
        row, length = lane.row, len(lane.row.tokens)
        depth = depth_of(row, layers)
        tasks.append(
            Task(
                model=model,
                lane=lane,
                kind=(model, row.gradients is None, depth, bucket(lane.reach), bucket(length), model.is_long(length)),
                order=(rank[lane.trunk], lane.join, index),
                tokens=lane.reach,
                cost=max(1, _cost(lane, depth)),
                ticket=ticket,
                foreseen=foreseen,
            )
        )
    return tasks


def bucket(length: int) -> int:
    """The least of 2, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, … that is no smaller.

    From 8 on at most a quarter is padding. Below, a batch of its own would cost more than a slot for each of its rows:
    a block takes as long to be called at all as for some forty positions more.
    """
    step = 1 << max(1, length.bit_length() - 3)
    return -(-length // step) * step


def grafted(lane: Lane, layers: int) -> Lane:
    """The lane as it grows on its unpatched run; as it is where nothing would be saved, the embedding is touched, or
    gradients are wanted."""
    if lane.row.gradients is not None:
        return lane
    touches = list(_touches(lane.row))
    positions = [first for _, first in touches]
    if lane.row.readout is not None and not isinstance(lane.row.readout, Loss):
        positions.append(lane.row.readout.position)  # a loss takes what lies before the start from the unpatched run
    start = min(positions, default=len(lane.row.tokens) - 1)
    join = min((joining_layer(site) for site, _ in touches), default=layers)
    if (start, join) == (0, 0) or any(site.name is SiteName.EMBED for site, _ in touches):
        return lane
    return replace(lane, start=start, join=join, grafted=True)


def _touches(row: Row) -> Iterator[tuple[Site, int]]:
    """Every site that a row changes or captures, with the first position there.

    Two runs are the same as long as their tokens are: what comes from a run that begins alike changes nothing there.
    """
    for intervention in row.interventions:
        positions: Sequence[int] = intervention.positions or range(len(row.tokens))
        if intervention.operation == "set" and isinstance(intervention.value, FromRun):
            alike = _common_prefix(row.tokens, intervention.value.tokens)
            positions = [position for position in positions if position >= alike]
        if positions:
            yield intervention.site, min(positions)
    for capture in row.captures:
        yield capture.site, min(capture.positions or (0,))


def _common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    return next((index for index, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))


def _placed(lanes: Sequence[Lane], layers: int) -> list[Lane]:
    """Every lane grafted or not, whichever is less work over all lanes of the same unpatched run."""
    candidates = [grafted(lane, layers) for lane in lanes]
    saved: dict[RunKey, int] = defaultdict(int)
    for lane, candidate in zip(lanes, candidates, strict=True):
        depth = depth_of(lane.row, layers)
        saved[lane.trunk] += _cost(lane, depth) - _cost(candidate, depth)
    return [
        candidate if saved[lane.trunk] >= len(lane.row.tokens) * layers else lane
        for lane, candidate in zip(lanes, candidates, strict=True)
    ]


def _cost(lane: Lane, depth: int) -> int:
    passes = 1 if lane.row.gradients is None else 1 + _BACKWARD
    return passes * lane.reach * max(0, depth - lane.join)
