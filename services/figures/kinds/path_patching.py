"""Path patching: what each sender does to the metric through the receivers, senders by layer and head."""

import numpy as np

from services.contracts.node import Writer
from services.contracts.patching import PatchingResult
from services.contracts.tensor import FloatArray
from services.figures.bars import Bars
from services.figures.kinds.patching import baselines_of, bold, differing, numbers
from services.figures.kinds.reading import array, dims, error, notes, of_all, pick, title
from services.figures.kinds.sweep import heads_and_mlps, position_names, strongest, strongest_rows
from services.figures.picture import Panel, Picture
from services.figures.scale import signed

_RANKED = 20
_RECEIVERS = 6


def path_patching_picture(result: PatchingResult, example: int | None) -> Picture:
    """With all positions at once, heads and MLPs by layer and the strongest ranked; else sender × position."""
    estimate, meaning = numbers(result, example)
    values, senders = array(estimate), result.senders or ()
    pairs = result.pairs if example is None else (pick(result.pairs, example),)
    scale = signed(meaning, values)
    panels: tuple[Panel, ...]
    marked: frozenset[int] = frozenset()
    if "position" in dims(estimate):
        prompts = [prompt for pair in pairs for prompt in (pair.tokens.clean, pair.tokens.corrupted)]
        positions = position_names(prompts, result.positions)
        marked = differing(pairs, result.positions)
        panels = (strongest_rows(values, senders, positions, scale, title="", what="sender", marked=marked),)
    else:
        chosen = strongest(values, _RANKED)
        errors = error(estimate)
        bars = Bars(
            names=tuple(senders[index] for index in chosen),
            values=values[chosen],
            value_name=meaning,
            errors=None if errors is None else errors[chosen],
            title=f"the {len(chosen)} strongest of {len(senders)} senders" if len(chosen) < len(senders) else "senders",
        )
        heads, mlps = _by_layer(senders, values)
        by_layer = [] if heads is None else [heads_and_mlps(heads, mlps, scale, "senders (grey: none)")]
        panels = (bars, *by_layer)
    return Picture(
        title(result, "path patching", _receivers(result.receivers or ()), result.mode),
        (panels,),
        notes(result, of_all(len(result.pairs), "pair", example), baselines_of(pairs), bold(marked)),
    )


def _by_layer(senders: tuple[str, ...], values: FloatArray) -> tuple[FloatArray | None, FloatArray | None]:
    """The heads' values as layer × head and the MLPs' by layer, NaN where no such sender is; None where none is."""
    writers = [Writer.parse(sender) for sender in senders]
    layers = 1 + max((writer.layer for writer in writers if writer.layer is not None), default=-1)
    heads = 1 + max((writer.head for writer in writers if writer.head is not None), default=-1)
    if not heads:
        return None, None
    by_head = np.full((layers, heads), np.nan, dtype=np.float32)
    by_mlp = np.full(layers, np.nan, dtype=np.float32)
    for writer, value in zip(writers, values, strict=True):
        if writer.head is not None and writer.layer is not None:
            by_head[writer.layer, writer.head] = value
        elif writer.layer is not None:
            by_mlp[writer.layer] = value
    return by_head, by_mlp if np.isfinite(by_mlp).any() else None


def _receivers(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:_RECEIVERS])
    more = len(names) - _RECEIVERS
    return f"to {shown} and {more} more" if more > 0 else f"to {shown}"
