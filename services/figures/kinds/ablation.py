"""Ablation: what the metric loses without each place, on a zero-centred scale."""

import numpy as np

from services.contracts.ablation import AblationResult
from services.contracts.tensor import Estimate
from services.figures.kinds.reading import array, blank, dims, not_reported, notes, number, of_all, pick, title
from services.figures.kinds.sweep import position_names, sweep_panels
from services.figures.picture import Picture
from services.figures.scale import signed


def ablation_picture(result: AblationResult, example: int | None) -> Picture:
    """Of all examples the mean effects, or those of one."""
    estimate = _effects(result, example)
    values = array(estimate)
    examples = result.examples if example is None else (pick(result.examples, example),)
    names = {
        "layer": tuple(map(str, result.layers or ())),
        "head": tuple(map(str, result.heads or ())),
        "position": position_names([one.tokens for one in examples], result.positions),
    }
    baseline = float(np.mean([one.baseline for one in examples]))
    over = {None: "", "position": "mean at each position", "all": "mean over all positions"}[result.over]
    return Picture(
        title(result, result.method.replace("_", " "), result.site),
        sweep_panels(values, dims(estimate), names, signed("effect on the metric", values)),
        notes(
            result,
            of_all(len(result.examples), "example", example),
            f"metric of the whole model {number(baseline)}",
            over,
            blank(values),
        ),
    )


def _effects(result: AblationResult, example: int | None) -> Estimate:
    if example is None or (len(result.examples) == 1 and example == 0):
        return result.effects
    effects = pick(result.examples, example).effects
    if effects is None:
        raise not_reported(example, "per_example")
    return effects
