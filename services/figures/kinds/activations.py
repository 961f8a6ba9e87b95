"""Activations: how long they are by position, one map per site; attention sites as they are, query × key."""

from collections.abc import Sequence

import numpy as np

from services.contracts.activations import ActivationsResult, PromptActivations, ReadPlace
from services.contracts.site import SiteName
from services.contracts.tensor import FloatArray
from services.figures import labels
from services.figures.heatmap import Heatmap
from services.figures.kinds.reading import array, blank, notes, of_all, pick, title
from services.figures.pattern import pattern, scores
from services.figures.picture import Picture, grid
from services.figures.scale import SEQUENTIAL, Scale, sequential

_ATTENTION = (SiteName.PATTERN, SiteName.ATTN_SCORES)
_IN_A_ROW = 3


def activations_picture(result: ActivationsResult, example: int | None) -> Picture:
    prompt = pick(result.prompts, example)
    arrays = [array(tensor) for tensor in prompt.activations]
    sites = list(dict.fromkeys(place.site for place in result.sites))
    norms: list[Heatmap] = []
    squares: list[Heatmap] = []
    for site in sites:
        read = [(place, values) for place, values in zip(result.sites, arrays, strict=True) if place.site is site]
        if site in _ATTENTION:
            squares += [square for place, values in read for square in _squares(place, values, prompt)]
        else:
            norms.append(_norms(site, read, prompt))
    return Picture(
        title(result, "activations"),
        (*grid(norms, 1), *grid(squares, _IN_A_ROW)),
        notes(result, of_all(len(result.prompts), "prompt", example or 0), _grey([*norms, *squares])),
    )


def _grey(panels: Sequence[Heatmap]) -> str:
    """What grey cells mean: positions that were not asked for, and scores that the causal mask hides."""
    return "grey: not read, or masked" if any(blank(panel.values) for panel in panels) else ""


def _norms(site: SiteName, read: Sequence[tuple[ReadPlace, FloatArray]], prompt: PromptActivations) -> Heatmap:
    """One row per layer (and head), one column per token: the length of the activation there."""
    rows: list[str] = []
    lines: list[FloatArray] = []
    for place, values in read:
        lengths = np.linalg.norm(values, axis=-1)
        for head, of_head in enumerate(lengths.T) if lengths.ndim == 2 else [(place.head, lengths)]:
            rows.append(_row(place.layer, head))
            lines.append(_at(place, of_head, len(prompt.tokens.ids)))
    values, scale = _scaled(np.stack(lines))
    return Heatmap(
        values=values,
        rows=tuple(rows),
        columns=labels.tokens(prompt.tokens.strings),
        scale=scale,
        title=site,
        row_name="layer" if all("." not in row for row in rows) else "head",
        column_name="token",
    )


def _squares(place: ReadPlace, values: FloatArray, prompt: PromptActivations) -> list[Heatmap]:
    """A head each: [query, key], from [query, key] or [query, head, key]."""
    draw = pattern if place.site is SiteName.PATTERN else scores
    tokens = prompt.tokens.strings
    queries = tokens if place.positions is None else [tokens[position] for position in place.positions]
    if place.head is not None:
        return [draw(values, tokens, f"{place.site} a{place.layer}.h{place.head}", queries=queries)]
    heads = values.shape[1]
    return [
        draw(values[:, head], tokens, f"{place.site} a{place.layer}.h{head}", queries=queries) for head in range(heads)
    ]


def _at(place: ReadPlace, values: FloatArray, length: int) -> FloatArray:
    """One value per token of the prompt, NaN where nothing was read."""
    if place.positions is None:
        return values
    line = np.full(length, np.nan, dtype=np.float32)
    line[list(place.positions)] = values
    return line


def _row(layer: int | None, head: int | None) -> str:
    if head is not None:
        return f"a{layer}.h{head}"
    return "" if layer is None else str(layer)


def _scaled(norms: FloatArray) -> tuple[FloatArray, Scale]:
    """The norms, or their logarithms where they span more than a decade, as the first position's often make them."""
    known = norms[np.isfinite(norms) & (norms > 0)]
    if known.size == 0 or known.max() <= 10 * known.min():
        return norms, sequential("norm", norms)
    logs = np.log10(norms, where=norms > 0, out=np.full_like(norms, np.nan))
    return logs, Scale(SEQUENTIAL, float(np.log10(known.min())), float(np.log10(known.max())), "log₁₀ of the norm")
