"""Patching and ablating features: exact effects as bars, or by position as a map, beside the first-order estimates."""

from collections.abc import Sequence

import numpy as np

from services.contracts.feature_ablation import FeatureAblationResult
from services.contracts.feature_patching import FeaturePatchingResult
from services.contracts.feature_site import ChosenFeature
from services.contracts.tensor import Estimate
from services.figures.bars import Bars
from services.figures.heatmap import Heatmap
from services.figures.kinds.feature_names import name_among_others
from services.figures.kinds.patching import baselines_of, bold, differing
from services.figures.kinds.reading import array, error, not_reported, notes, number, of_all, pick, title
from services.figures.kinds.sweep import position_names
from services.figures.picture import Panel, Picture
from services.figures.scale import signed
from services.figures.scatter import Scatter

_SHOWN = 40
_EFFECT = "effect on the metric"
_SOURCES = {"zero": "to zero", "mean": "to the mean"}


def feature_patching_picture(result: FeaturePatchingResult, example: int | None) -> Picture:
    """Of all pairs the normalized effects and those of the whole site's parts; of one among several its effects."""
    pairs = result.pairs if example is None else (pick(result.pairs, example),)
    every = example is None or len(result.pairs) == 1
    parts = {"all features": result.parts.features, "error ε": result.parts.error, "both": result.parts.both}
    normalized = every and bool(np.isfinite(array(result.parts.both.normalized)).any())
    above: dict[str, Estimate] = {}
    if every:
        above = {name: part.normalized if normalized else part.effects for name, part in parts.items()}
        shown, exact, first_order = (
            result.normalized if normalized else result.effects,
            result.effects,
            result.estimated,
        )
    else:
        shown, exact, first_order = *(_own(pairs[0].effects, example, "per_pair"),) * 2, pairs[0].estimated
    prompts = [prompt for pair in pairs for prompt in (pair.tokens.clean, pair.tokens.corrupted)]
    marked = differing(pairs, result.positions)
    panels = _panels(
        _names(result),
        shown,
        above,
        "normalized effect" if normalized else _EFFECT,
        () if result.positions is None else position_names(prompts, result.positions),
        marked=marked,
    )
    where = f"{result.site} {result.layer}"
    return Picture(
        title(result, f"patching features of {result.sae}", where, result.mode),
        ((*panels, *_check(result.features, exact, first_order)),),
        notes(
            result,
            of_all(len(result.pairs), "pair", example),
            baselines_of(pairs),
            bold(marked) if result.positions is not None else "",
            _agreement(result),
        ),
    )


def feature_ablation_picture(result: FeatureAblationResult, example: int | None) -> Picture:
    """Of all examples the mean effects and that of all features together, or the effects of one among several."""
    examples = result.examples if example is None else (pick(result.examples, example),)
    every = example is None or len(result.examples) == 1
    shown, first_order = (
        (result.effects, result.estimated)
        if every
        else (_own(examples[0].effects, example, "per_example"), examples[0].estimated)
    )
    tokens = () if result.positions is None else position_names([one.tokens for one in examples], result.positions)
    above = {"all features": result.together.effects} if every else {}
    panels = _panels(_names(result), shown, above, _EFFECT, tokens)
    baseline = float(np.mean([one.baseline for one in examples]))
    over = {None: "", "position": "mean at each position", "all": "mean over all positions"}[result.over]
    where = f"{result.site} {result.layer}"
    return Picture(
        title(result, f"ablating features of {result.sae}", where, _SOURCES[result.source]),
        ((*panels, *_check(result.features, shown, first_order)),),
        notes(
            result,
            of_all(len(result.examples), "example", example),
            f"metric of the whole model {number(baseline)}",
            over,
            _agreement(result),
        ),
    )


def _names(result: FeaturePatchingResult | FeatureAblationResult) -> tuple[str, ...]:
    return tuple(name_among_others(result.promoted_logits, feature.index) for feature in result.features)


def _own(effects: Estimate | None, example: int | None, flag: str) -> Estimate:
    if effects is None:
        raise not_reported(example or 0, flag)
    return effects


def _panels(
    names: Sequence[str],
    estimate: Estimate,
    above: dict[str, Estimate],
    meaning: str,
    positions: Sequence[str],
    *,
    marked: frozenset[int] = frozenset(),
) -> tuple[Panel, ...]:
    """The parts, then the features, in the result's order; whatever their number, as many as can be read."""
    rows = [*above, *names][:_SHOWN]
    values = np.concatenate([*(array(part)[None] for part in above.values()), array(estimate)])[:_SHOWN]
    left_out = len(above) + len(names) - len(rows)
    heading = f"the first {len(rows) - len(above)} of {len(names)} features" if left_out else ""
    if positions:
        return (
            Heatmap(
                values,
                tuple(rows),
                tuple(positions),
                signed(meaning, values),
                heading,
                row_name="feature",
                column_name="position",
                marked=marked,
            ),
        )
    errors = [error(each) for each in (*above.values(), estimate)]
    known = [one.reshape(-1) for one in errors if one is not None]
    spread = np.concatenate(known)[:_SHOWN] if known else None
    return (Bars(tuple(rows), values, meaning, spread, heading),)


def _check(features: Sequence[ChosenFeature], exact: Estimate, first_order: Estimate | None) -> tuple[Panel, ...]:
    if first_order is None or not features:
        return ()
    values = array(exact)
    top = np.array([feature.chosen == "top" for feature in features])
    strongest = np.broadcast_to(top.reshape(-1, *[1] * (values.ndim - 1)), values.shape)
    return (
        Scatter(
            exact=values.reshape(-1),
            estimated=array(first_order).reshape(-1),
            strongest=tuple(strongest.reshape(-1).tolist()),
            value_name="effect",
            title="each feature's first-order estimate",
            others="named",
        ),
    )


def _agreement(result: FeaturePatchingResult | FeatureAblationResult) -> str:
    if result.check is None:
        return "no first-order estimate: the metric has no slope at the clean run"
    return f"first-order estimates: largest error {number(result.check.largest_error)}"
