"""What parts of a change at an SAE's site do exactly: one run each, with that part added to the base run's activation.

1. a part is one feature's Δf_i d_i, all features' Σ Δf_i d_i, the error's Δε, or both, which is Δx; or one of these at
   one of the asked positions alone;
2. one row adds it at all of the change's positions, or (by position) one row at each;
3. effect = m(changed) − m(base); where nothing changes it is zero, and nothing is run.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float64

from services.contracts.model import ModelFacts
from services.engine.row import Intervention, Row
from services.methods.context import MethodContext, SaeInUse
from services.methods.feature_site import Activation, Change, Subject
from services.methods.metric import finite

ROWS_AT_ONCE = 8_192
BYTES_AT_ONCE = 128 * 2**20
"""Rows are run together while what they add and their base runs take up to about this much."""

WholePart = Literal["features", "error", "both"] | int
"""A feature is named by its index."""


@dataclass(frozen=True)
class PartAt:
    """A part at the asked position of this number, and nothing at the others.

    Its row begins where the whole part's does, wherever the position lies: what it costs is known before it is chosen.
    """

    part: WholePart
    place: int


Part = WholePart | PartAt


@dataclass(frozen=True, eq=False)
class _Cell:
    """One row, and where its effect belongs: its subject's number, then the other axes."""

    subject: int
    place: tuple[int, ...]
    row: Row
    nbytes: int


def exact_effects(
    changes: Sequence[tuple[Subject, Change]],
    parts: Sequence[Part],
    in_use: SaeInUse,
    context: MethodContext,
    *,
    by_position: bool = False,
    rows_at_once: int = ROWS_AT_ONCE,
) -> Float64[np.ndarray, "subject part *position"]:
    """In the metric's units. By position the last axis is the asked ones, as many for every subject."""
    positions = (len(changes[0][0].asked),) if by_position else ()
    effects = np.zeros((len(changes), len(parts), *positions))
    cells = _cells(changes, parts, in_use, by_position=by_position)
    for group in _groups(cells, changes, context.model.facts, rows_at_once):
        numbers = sorted({cell.subject for cell in group})
        unpatched = [_row(changes[number][0]) for number in numbers]  # so that the planner grows the others on it
        outcomes = context.run([*unpatched, *(cell.row for cell in group)])
        metrics = [
            finite(changes[number][0].measured.value(outcome.values()), "the metric of a patched run")
            for number, outcome in zip([*numbers, *(cell.subject for cell in group)], outcomes, strict=True)
        ]
        base = dict(zip(numbers, metrics, strict=False))
        for cell, metric in zip(group, metrics[len(numbers) :], strict=True):
            effects[(cell.subject, *cell.place)] = metric - base[cell.subject]
    return effects


def _cells(
    changes: Sequence[tuple[Subject, Change]], parts: Sequence[Part], in_use: SaeInUse, *, by_position: bool
) -> Iterator[_Cell]:
    for number, (subject, change) in enumerate(changes):
        for place, value in enumerate(_added(subject, change, parts, in_use)):
            for at, interventions in _changes(subject, change, value, by_position=by_position):
                yield _Cell(number, (place, *at), _row(subject, interventions), value.nbytes)


def _added(subject: Subject, change: Change, parts: Sequence[Part], in_use: SaeInUse) -> Iterator[Activation]:
    """By part, what is added at the change's positions."""
    W_dec = in_use.sae.W_dec.cpu()
    for part in parts:
        match part:
            case PartAt(part=whole, place=place):
                (value,) = _added(subject, change, (whole,), in_use)
                here = torch.tensor([position == subject.asked[place] for position in change.positions])
                yield value * here[:, None]
            case "features":
                yield change.whole - change.error
            case "error":
                yield change.error
            case "both":
                yield change.whole
            case _:
                yield change.of_features(torch.tensor([part])) * W_dec[part]


def _changes(
    subject: Subject, change: Change, value: Activation, *, by_position: bool
) -> Iterator[tuple[tuple[int, ...], tuple[Intervention, ...]]]:
    """The interventions of a part's rows that change something, and by position where among the asked ones."""
    if not by_position:
        if bool(value.any()):
            yield (), change.add(value)
        return
    for position, here in zip(change.positions, value, strict=True):
        if bool(here.any()):
            place = subject.asked.index(position)
            yield (place,), change.add(here[None], (position,))


def _row(subject: Subject, interventions: tuple[Intervention, ...] = ()) -> Row:
    return Row(subject.base.ids, interventions, readout=subject.measured.readout)


def _groups(
    cells: Iterator[_Cell], changes: Sequence[tuple[Subject, Change]], facts: ModelFacts, rows_at_once: int
) -> Iterator[list[_Cell]]:
    width = 4 * facts.layers * (2 * facts.d_model + (facts.heads + 2 * facts.kv_heads) * facts.d_head)
    group: list[_Cell] = []
    taken, last = 0, -1
    for cell in cells:
        run = 0 if cell.subject == last else width * len(changes[cell.subject][0].base.ids)
        if group and (taken + cell.nbytes + run > BYTES_AT_ONCE or len(group) == rows_at_once):
            yield group
            group, taken = [], 0
        group.append(cell)
        taken, last = taken + cell.nbytes + run, cell.subject
    if group:
        yield group
