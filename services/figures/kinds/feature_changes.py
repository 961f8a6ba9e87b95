"""Patching and ablating features: exact effects as bars, or by position as a map, beside the first-order estimates."""

from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class _Numbers:
    """What is drawn: the whole site's parts, the features, and both columns of the check."""

    parts: dict[str, Estimate]
    features: Estimate
    exact: Estimate
    estimated: Estimate | None
    meaning: str = _EFFECT


def feature_patching_picture(result: FeaturePatchingResult, example: int | None) -> Picture:
    """Of all pairs the normalized effects and those of the whole site's parts; of one among several its effects."""
    pairs = result.pairs if example is None else (pick(result.pairs, example),)
    prompts = [prompt for pair in pairs for prompt in (pair.tokens.clean, pair.tokens.corrupted)]
    tokens = () if result.positions is None else position_names(prompts, result.positions)
    marked = differing(pairs, result.positions) if tokens else frozenset()
    return Picture(
        title(result, f"patching features of {result.sae}", f"{result.site} {result.layer}", result.mode),
        _panels(result, _of_patching(result, example), tokens, marked),
        notes(
            result,
            of_all(len(result.pairs), "pair", example),
            baselines_of(pairs),
            bold(marked),
            _agreement(result),
        ),
    )


def feature_ablation_picture(result: FeatureAblationResult, example: int | None) -> Picture:
    """Of all examples the mean effects and that of all features together, or the effects of one among several."""
    examples = result.examples if example is None else (pick(result.examples, example),)
    tokens = () if result.positions is None else position_names([one.tokens for one in examples], result.positions)
    baseline = float(np.mean([one.baseline for one in examples]))
    over = {None: "", "position": "mean at each position", "all": "mean over all positions"}[result.over]
    return Picture(
        title(result, f"ablating features of {result.sae}", f"{result.site} {result.layer}", _SOURCES[result.source]),
        _panels(result, _of_ablation(result, example), tokens),
        notes(
            result,
            of_all(len(result.examples), "example", example),
            f"metric of the whole model {number(baseline)}",
            over,
            _agreement(result),
        ),
    )


def _of_patching(result: FeaturePatchingResult, example: int | None) -> _Numbers:
    if example is not None and len(result.pairs) > 1:
        pair = pick(result.pairs, example)
        own = _own(pair.effects, example, "per_pair")
        return _Numbers({}, own, own, pair.estimated)
    parts = {"all features": result.parts.features, "error ε": result.parts.error, "both": result.parts.both}
    if np.isfinite(array(result.parts.both.normalized)).any():
        above = {name: part.normalized for name, part in parts.items()}
        return _Numbers(above, result.normalized, result.effects, result.estimated, "normalized effect")
    above = {name: part.effects for name, part in parts.items()}
    return _Numbers(above, result.effects, result.effects, result.estimated)


def _of_ablation(result: FeatureAblationResult, example: int | None) -> _Numbers:
    if example is not None and len(result.examples) > 1:
        one = pick(result.examples, example)
        own = _own(one.effects, example, "per_example")
        return _Numbers({}, own, own, one.estimated)
    return _Numbers({"all features": result.together.effects}, result.effects, result.effects, result.estimated)


def _own(effects: Estimate | None, example: int, flag: str) -> Estimate:
    if effects is None:
        raise not_reported(example, flag)
    return effects


def _panels(
    result: FeaturePatchingResult | FeatureAblationResult,
    numbers: _Numbers,
    positions: Sequence[str],
    marked: frozenset[int] = frozenset(),
) -> tuple[tuple[Panel, ...], ...]:
    """The parts, then the features, in the result's order: as many as can be read. Beside them the check."""
    names = tuple(name_among_others(result.promoted_logits, feature.index) for feature in result.features)
    estimates = (*numbers.parts.values(), numbers.features)
    rows = (*numbers.parts, *names)[:_SHOWN]
    values = np.concatenate([*(array(part)[None] for part in numbers.parts.values()), array(numbers.features)])[:_SHOWN]
    left_out = len(numbers.parts) + len(names) - len(rows)
    heading = f"the first {len(names) - left_out} of {len(names)} features" if left_out else ""
    check = _check(result.features, numbers)
    if positions:
        scale = signed(numbers.meaning, values)
        heatmap = Heatmap(values, rows, tuple(positions), scale, heading, "feature", "position", marked=marked)
        return ((heatmap, *check),)
    errors = [one.reshape(-1) for one in map(error, estimates) if one is not None]
    spread = np.concatenate(errors)[:_SHOWN] if errors else None
    return ((Bars(rows, values, numbers.meaning, spread, heading), *check),)


def _check(features: Sequence[ChosenFeature], numbers: _Numbers) -> tuple[Panel, ...]:
    if numbers.estimated is None or not features:
        return ()
    values = array(numbers.exact)
    top = np.array([feature.chosen == "top" for feature in features])
    strongest = np.broadcast_to(top.reshape(-1, *[1] * (values.ndim - 1)), values.shape)
    return (
        Scatter(
            exact=values.reshape(-1),
            estimated=array(numbers.estimated).reshape(-1),
            strongest=tuple(strongest.reshape(-1).tolist()),
            value_name=_EFFECT,
            title="each feature's first-order estimate",
            others="named",
        ),
    )


def _agreement(result: FeaturePatchingResult | FeatureAblationResult) -> str:
    if result.check is None:
        return "no first-order estimate: the metric has no slope at the clean run"
    return f"first-order estimates: largest error {number(result.check.largest_error)}"
