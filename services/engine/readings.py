"""The readings of a driven batch, with as little unembedding as they allow.

1. Logits of named tokens are dot products with those tokens' columns alone.
2. Where the whole vocabulary is needed, positions of many lanes are unembedded together: the matrix is read once.
3. A loss needs many positions; before a lane's start they are its unpatched run's, and computed once for all lanes.
4. A text's log probabilities need many too, none of them before a lane's start.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from services.engine.base_runs import Runs
from services.engine.driver import Drive
from services.engine.lane import Lane, RunKey
from services.engine.passes import reference_of
from services.engine.reading import read_logits, reported
from services.engine.readout import Loss, Reading, TextLogProbs, TokenLogits
from services.engine.tail import Tail

_TOGETHER = 256
"""Positions unembedded at once: enough to use the matrix well, few enough for their logits to stay small."""


def read_all(tail: Tail, drive: Drive, runs: Runs) -> dict[int, Reading]:
    """The reading of every lane that has a readout, by lane."""
    readings: dict[int, Reading] = {}
    at_one_position: list[int] = []
    losses: list[int] = []
    texts: list[int] = []
    for index, lane in enumerate(drive.lanes):
        match lane.row.readout:
            case None:
                pass
            case TokenLogits(position, tokens) if tokens is not None:
                readings[index] = reported(tail.logits(drive.stream[index, position - lane.start], tokens))
            case Loss():
                losses.append(index)
            case TextLogProbs():
                texts.append(index)
            case _:
                at_one_position.append(index)
    readings |= _read_texts(tail, drive, texts)
    return (
        readings | _read_at_one_position(tail, drive, runs, at_one_position) | _read_losses(tail, drive, runs, losses)
    )


def _read_at_one_position(tail: Tail, drive: Drive, runs: Runs, lanes: Sequence[int]) -> dict[int, Reading]:
    readings: dict[int, Reading] = {}
    for first in range(0, len(lanes), _TOGETHER):
        together = lanes[first : first + _TOGETHER]
        readouts = [drive.lanes[index].row.readout for index in together]
        slots = [
            readout.position - drive.lanes[index].start
            for index, readout in zip(together, readouts, strict=True)
            if not isinstance(readout, Loss | TextLogProbs | None)
        ]
        logits = tail.logits(drive.stream[list(together), slots])
        for index, readout, own in zip(together, readouts, logits, strict=True):
            assert readout is not None
            readings[index] = read_logits(readout, own[None], reference_of(drive.lanes[index], runs))
    return readings


@dataclass(frozen=True, eq=False)
class _Predictions:
    """The final residual stream at some positions of one run, and the tokens that should follow there."""

    residual: Float[Tensor, "position d_model"]
    targets: tuple[int, ...]


def _read_losses(tail: Tail, drive: Drive, runs: Runs, lanes: Sequence[int]) -> dict[int, Reading]:
    """Every lane's own positions and, once per unpatched run and targets, the positions before their starts."""
    own = {index: _own_predictions(drive, index) for index in lanes}
    trunks: dict[tuple[RunKey, tuple[int, ...]], _Predictions] = {}
    for index in lanes:
        lane, targets = drive.lanes[index], _targets(drive.lanes[index])
        stem = runs[lane.trunk].stem if lane.start else None
        if stem is not None:
            trunks[lane.trunk, targets] = _Predictions(stem.residuals[-1][: len(targets)], targets)
    losses = _losses(tail, [*own.values(), *trunks.values()])
    own_losses, trunk_losses = losses[: len(own)], dict(zip(trunks, losses[len(own) :], strict=True))
    readings: dict[int, Reading] = {}
    for index, after in zip(own, own_losses, strict=True):
        lane = drive.lanes[index]
        before = trunk_losses[lane.trunk, _targets(lane)][: lane.start] if lane.start else after[:0]
        readings[index] = reported(torch.cat([before, after]).mean())
    return readings


def _read_texts(tail: Tail, drive: Drive, lanes: Sequence[int]) -> dict[int, Reading]:
    several = []
    for index in lanes:
        lane, readout = drive.lanes[index], drive.lanes[index].row.readout
        assert isinstance(readout, TextLogProbs)
        first = readout.position - lane.start
        several.append(_Predictions(drive.stream[index, first : first + len(readout.targets)], readout.targets))
    return {index: reported(-losses) for index, losses in zip(lanes, _losses(tail, several), strict=True)}


def _own_predictions(drive: Drive, index: int) -> _Predictions:
    lane = drive.lanes[index]
    targets = _targets(lane)[lane.start :]
    return _Predictions(drive.stream[index, : len(targets)], targets)


def _targets(lane: Lane) -> tuple[int, ...]:
    assert isinstance(lane.row.readout, Loss)
    return lane.row.readout.targets


def _losses(tail: Tail, several: Sequence[_Predictions]) -> list[Float[Tensor, " _position"]]:
    """The loss at every position, in nats."""
    if not several:
        return []
    residual = torch.cat([predictions.residual for predictions in several])
    targets = torch.tensor([token for each in several for token in each.targets], device=residual.device)
    losses = [
        torch.nn.functional.cross_entropy(tail.logits(residual[piece]), targets[piece], reduction="none")
        for piece in _pieces(len(targets))
    ]
    return list(torch.split(torch.cat(losses), [len(each.targets) for each in several]))


def _pieces(length: int) -> Iterator[slice]:
    for first in range(0, length, _TOGETHER):
        yield slice(first, first + _TOGETHER)
