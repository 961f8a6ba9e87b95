"""A direction: how well it tells the sets apart by layer, and every prompt's projection in one of the layers."""

import numpy as np

from services.contracts.direction import DirectionResult, ProjectedSet
from services.contracts.tensor import FloatArray
from services.figures import labels
from services.figures.bars import Bars, PairedBars
from services.figures.kinds.reading import array, notes, number, pick, title
from services.figures.picture import Panel, Picture

_PROMPTS = 30
"""Of each set."""
_CHARACTERS = 36


def direction_picture(result: DirectionResult, example: int | None) -> Picture:
    """`example` counts the layers of the result; else the first of those that separate best, on prompts kept from the
    direction where there are any."""
    places = range(len(result.layers))
    place = pick(places, example) if example is not None else max(places, key=lambda one: _auroc(result, one))
    layer = result.layers[place]
    middle = (layer.separation.positive.mean + layer.separation.negative.mean) / 2
    names: list[str] = []
    values: list[float] = []
    for sign, shown in (("+", result.positive), ("−", result.negative)):
        names += [f"{sign} {_end(shown, prompt)}" for prompt in range(min(len(shown.tokens), _PROMPTS))]
        values += [float(one) - middle for one in array(shown.projections)[place][:_PROMPTS]]
    projections = Bars(
        tuple(names),
        np.array(values, dtype=np.float32),
        "x·d̂ − the middle of the two means",
        title=f"projections, layer {layer.layer}",
    )
    most = max(len(result.positive.tokens), len(result.negative.tokens))
    d_prime = layer.separation.d_prime
    return Picture(
        title(result, f"direction of {result.site}", "difference of means", f"position {result.position}"),
        ((projections,), (_by_layer(result),)),
        notes(
            result,
            f"layer {layer.layer}: length {number(layer.norm)}, mean norm of the activations {number(layer.mean_norm)}"
            + ("" if d_prime is None else f", d′ {number(d_prime)}"),
            f"the first {_PROMPTS} prompts of each set" if most > _PROMPTS else "",
            "" if layer.held_out is not None else "AUROC of the very prompts that the direction was made of",
        ),
    )


def _by_layer(result: DirectionResult) -> Panel:
    names = tuple(f"layer {layer.layer}" for layer in result.layers)
    own = _array([layer.separation.auroc for layer in result.layers])
    held_out = [layer.held_out.auroc for layer in result.layers if layer.held_out is not None]
    if len(held_out) < len(result.layers):
        return Bars(names, own, "AUROC", title="separation")
    return PairedBars(names, own, _array(held_out), "AUROC", ("of all", "held out"), title="separation")


def _auroc(result: DirectionResult, place: int) -> float:
    layer = result.layers[place]
    return (layer.held_out or layer.separation).auroc


def _array(values: list[float]) -> FloatArray:
    return np.array(values, dtype=np.float32)


def _end(shown: ProjectedSet, prompt: int) -> str:
    """The end of a prompt, and whether it was kept from the direction that was tried on it."""
    text = labels.plain("".join(shown.tokens[prompt].strings)[-_CHARACTERS:], _CHARACTERS)
    return f"{text} (held out)" if prompt in shown.held_out else text
