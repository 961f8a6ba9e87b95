"""Attribution patching: the estimated effects of each site, and the estimates against exact patching."""

import numpy as np

from services.contracts.attribution import AttributionResult
from services.contracts.attribution_patching import (
    AttributionCheck,
    AttributionPatchingOutcome,
    CheckedNode,
    NodeEffects,
)
from services.contracts.tensor import FloatArray
from services.figures import labels
from services.figures.kinds.patching import baselines_of, bold, differing
from services.figures.kinds.reading import array, blank, dims, not_reported, notes, number, of_all, pick, title
from services.figures.kinds.sweep import position_names, sweep_panels
from services.figures.picture import Panel, Picture, grid
from services.figures.scale import Scale, sequential, signed
from services.figures.scatter import Scatter

_VARIANTS = {"atp": "AtP", "atp_star": "AtP*"}
_IN_A_ROW = 2


def attribution_patching_picture(
    result: AttributionResult, outcome: AttributionPatchingOutcome, example: int | None
) -> Picture:
    """One heatmap or more per site on a scale that all share, and the check as a scatter."""
    if example is not None:
        pick(outcome.pairs, example)
        if len(outcome.pairs) > 1:
            raise not_reported(example)
    arrays = [array(node.effects) for node in outcome.nodes]
    every_signed = all(node.signed for node in outcome.nodes)
    scale = (signed if every_signed else sequential)("estimated effect on the metric", *arrays)
    panels: list[Panel] = []
    for node, values in zip(outcome.nodes, arrays, strict=True):
        panels += [panel for row in _panels(node, values, outcome, scale) for panel in row]
    marked = any(differing(outcome.pairs, node.positions) for node in outcome.nodes if "position" in dims(node.effects))
    return Picture(
        title(result, "attribution patching", _VARIANTS[outcome.variant], outcome.mode),
        grid([*panels, _scatter(outcome.check)], _IN_A_ROW),
        notes(
            result,
            of_all(len(outcome.pairs), "pair", example),
            baselines_of(outcome.pairs),
            _verdict(outcome.check),
            bold(marked),
            *{blank(values) for values in arrays if blank(values)},
        ),
    )


def _panels(
    node: NodeEffects, values: FloatArray, outcome: AttributionPatchingOutcome, scale: Scale
) -> tuple[tuple[Panel, ...], ...]:
    prompts = [prompt for pair in outcome.pairs for prompt in (pair.tokens.clean, pair.tokens.corrupted)]
    axes = dims(node.effects)
    names = {
        "layer": tuple(map(str, node.layers)),
        "head": tuple(map(str, node.heads or ())),
        "position": position_names(prompts, node.positions) if "position" in axes else (),
    }
    marked = differing(outcome.pairs, node.positions) if "position" in axes else frozenset()
    return sweep_panels(values, axes, names, scale, marked=marked, title=node.site)


def _scatter(check: AttributionCheck) -> Scatter:
    return Scatter(
        exact=np.array([cell.exact for cell in check.cells], dtype=np.float32),
        estimated=np.array([cell.estimated for cell in check.cells], dtype=np.float32),
        strongest=tuple(cell.chosen == "top" for cell in check.cells),
        value_name="effect",
        title="the check: nodes patched exactly",
    )


def _verdict(check: AttributionCheck) -> str:
    rank = "not defined" if check.rank_correlation is None else number(check.rank_correlation)
    worst = max(check.cells, key=lambda cell: abs(cell.estimated - cell.exact), default=None)
    return (
        f"check: rank correlation {rank}, largest error {number(check.largest_error)}{_named(worst)}, "
        f"{check.false_negatives} false negatives among those sampled"
    )


def _named(node: CheckedNode | None) -> str:
    if node is None:
        return ""
    head = "" if node.head is None else f", head {node.head}"
    position = "" if node.position is None else f" at position {labels.plain(str(node.position))}"
    return f" ({node.site} of layer {node.layer}{head}{position})"
