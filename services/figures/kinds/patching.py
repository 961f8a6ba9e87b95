"""Patching: how much of the metric each patched place moves, on a zero-centred scale."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from services.contracts.patching import PatchingResult
from services.contracts.result import Baselines, PairTokens
from services.contracts.tensor import Estimate
from services.figures.kinds.reading import array, blank, dims, not_reported, notes, number, of_all, pick, title
from services.figures.kinds.sweep import position_names, sweep_panels
from services.figures.picture import Picture
from services.figures.scale import signed

_NORMALIZED = "normalized effect"
_EFFECT = "effect on the metric"


class ComparedPair(Protocol):
    """What every method on pairs echoes of each."""

    @property
    def tokens(self) -> PairTokens: ...

    @property
    def differing_positions(self) -> tuple[int, ...]: ...

    @property
    def baselines(self) -> Baselines: ...


def patching_picture(result: PatchingResult, example: int | None) -> Picture:
    """Of all pairs the normalized effects, of one among several its effects in the metric's units."""
    estimate, meaning = numbers(result, example)
    values = array(estimate)
    pairs = result.pairs if example is None else (pick(result.pairs, example),)
    prompts = [prompt for pair in pairs for prompt in (pair.tokens.clean, pair.tokens.corrupted)]
    names = {
        "layer": tuple(map(str, result.layers or ())),
        "head": tuple(map(str, result.heads or ())),
        "position": position_names(prompts, result.positions),
    }
    marked = differing(pairs, result.positions)
    return Picture(
        title(result, "activation patching", result.site or "", result.mode),
        sweep_panels(values, dims(estimate), names, signed(meaning, values), marked=marked),
        notes(result, of_all(len(result.pairs), "pair", example), baselines_of(pairs), bold(marked), blank(values)),
    )


def differing(pairs: Sequence[ComparedPair], positions: Sequence[int | str] | None) -> frozenset[int]:
    """Which of the shown positions differ between clean and corrupted in every pair."""
    everywhere = set.intersection(*(set(pair.differing_positions) for pair in pairs))
    length = len(pairs[0].tokens.clean.ids)
    shown: Sequence[int | str] = range(length) if positions is None else positions
    return frozenset(at for at, position in enumerate(shown) if position in everywhere)


def numbers(result: PatchingResult, example: int | None) -> tuple[Estimate, str]:
    """The numbers to draw, and what they measure."""
    if example is None or (len(result.pairs) == 1 and example == 0):
        usable = bool(np.isfinite(array(result.normalized)).any())
        return (result.normalized, _NORMALIZED) if usable else (result.effects, _EFFECT)
    effects = pick(result.pairs, example).effects
    if effects is None:
        raise not_reported(example, "per_pair")
    return effects, _EFFECT


def baselines_of(pairs: Sequence[ComparedPair]) -> str:
    """The metric on the two unpatched runs, means over pairs."""
    clean = float(np.mean([pair.baselines.clean for pair in pairs]))
    corrupted = float(np.mean([pair.baselines.corrupted for pair in pairs]))
    return f"metric: clean {number(clean)}, corrupted {number(corrupted)}"


def bold(marked: object) -> str:
    """What bold labels mean, where there are any."""
    return "bold: the tokens differ between clean and corrupted" if marked else ""
