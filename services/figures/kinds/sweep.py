"""Panels for numbers by layer, head and position, whichever of these dimensions there are."""

from collections.abc import Mapping, Sequence

import numpy as np

from services.contracts.result import PromptTokens
from services.contracts.tensor import FloatArray
from services.figures import labels
from services.figures.heatmap import Heatmap
from services.figures.picture import Panel, grid
from services.figures.scale import Scale

_MOST_MULTIPLES = 12
"""Up to so many positions each has its own layer × head map; with more, the strongest heads have a row each."""
_STRONGEST = 24
_IN_A_ROW = 3


def sweep_panels(
    values: FloatArray,
    dims: Sequence[str],
    names: Mapping[str, Sequence[str]],
    scale: Scale,
    *,
    marked: frozenset[int] = frozenset(),
    title: str = "",
) -> tuple[tuple[Panel, ...], ...]:
    """Rows of heatmaps of `values`, whose axes are `dims`, labelled by `names`; `marked` are bold positions."""
    if values.ndim == 0:
        values, dims = values.reshape(1), (title or "effect",)
    if values.ndim == 1:
        only = dims[0]
        columns = names.get(only, ("",) * len(values))
        one_row = values.reshape(1, -1)
        bold = marked if only == "position" else frozenset()
        return ((_map(one_row, ("",), columns, scale, title, names=("", only), marked=bold),),)
    if values.ndim == 2:
        down, across = dims
        bold = marked if across == "position" else frozenset()
        return ((_map(values, names[down], names[across], scale, title, names=(down, across), marked=bold),),)
    layers, heads, positions = (names[dim] for dim in dims)
    if len(positions) <= _MOST_MULTIPLES:
        maps = [
            _map(values[..., at], layers, heads, scale, f"{title} {name}".strip(), names=("layer", "head"))
            for at, name in enumerate(positions)
        ]
        return grid(maps, _IN_A_ROW)
    rows = [f"a{layer}.h{head}" for layer in layers for head in heads]
    flat = values.reshape(len(rows), len(positions))
    return ((strongest_rows(flat, rows, positions, scale, title=title, what="head", marked=marked),),)


def strongest_rows(
    values: FloatArray,
    rows: Sequence[str],
    positions: Sequence[str],
    scale: Scale,
    *,
    title: str,
    what: str,
    marked: frozenset[int] = frozenset(),
) -> Heatmap:
    """The rows with the largest magnitudes, strongest first."""
    chosen = strongest(values, _STRONGEST)
    omitted = len(rows) - len(chosen)
    told = f"the {len(chosen)} strongest of {len(rows)} {what}s" if omitted else ""
    shown = " · ".join(filter(None, (title, told)))
    kept = [rows[index] for index in chosen]
    return _map(values[chosen], kept, positions, scale, shown, names=(what, "position"), marked=marked)


def strongest(values: FloatArray, count: int) -> list[int]:
    """The rows (or values) with the largest magnitudes, strongest first; rows without any value come last."""
    magnitudes = np.nan_to_num(np.abs(values), nan=-1.0).reshape(len(values), -1).max(axis=1)
    return [int(index) for index in np.argsort(-magnitudes, kind="stable")[:count]]


def heads_and_mlps(
    heads: FloatArray, mlps: FloatArray | None, scale: Scale, title: str, *, layers: Sequence[str] | None = None
) -> Heatmap:
    """Layer × head, with the MLPs (layer) as a last column behind a line. `layers` are all from 0 unless named."""
    layers = numbered(heads.shape[0]) if layers is None else layers
    names = numbered(heads.shape[1])
    if mlps is None:
        return _map(heads, layers, names, scale, title, names=("layer", "head"))
    values = np.concatenate([heads, mlps.reshape(-1, 1)], axis=1)
    columns = (*names, "MLP")
    return Heatmap(values, tuple(layers), columns, scale, title, "layer", "head", rule_before=len(names))


def numbered(count: int) -> tuple[str, ...]:
    return tuple(str(index) for index in range(count))


def position_names(prompts: Sequence[PromptTokens], positions: Sequence[int | str] | None = None) -> tuple[str, ...]:
    """A label per position: its token where all prompts agree, else all that some prompts have there, else its number.

    Positions that a client named keep their names.
    """
    shortest = min(len(prompt.strings) for prompt in prompts)
    return tuple(
        labels.plain(position) if isinstance(position, str) else _token_at(prompts, position)
        for position in (range(shortest) if positions is None else positions)
    )


def _token_at(prompts: Sequence[PromptTokens], position: int) -> str:
    texts = list(dict.fromkeys(prompt.strings[position] for prompt in prompts))
    if len(texts) > 2:
        return str(position)
    return "/".join(labels.token(text, 12) for text in texts)


def _map(
    values: FloatArray,
    rows: Sequence[str],
    columns: Sequence[str],
    scale: Scale,
    title: str,
    *,
    names: tuple[str, str],
    marked: frozenset[int] = frozenset(),
) -> Heatmap:
    return Heatmap(values, tuple(rows), tuple(columns), scale, title, names[0], names[1], marked=marked)
