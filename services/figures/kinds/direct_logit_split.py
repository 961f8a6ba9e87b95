"""The features of an SAE in direct logit attribution: their terms beside the rest, and what removing them does."""

import numpy as np

from services.contracts.direct_logit_features import FeatureSplit
from services.contracts.tensor import ScalarStatistic
from services.figures.bars import Bars
from services.figures.kinds.feature_names import name_among_others
from services.figures.kinds.reading import array, scalars
from services.figures.picture import Panel
from services.figures.scatter import Scatter

_SHOWN = 30


def split_panels(split: FeatureSplit) -> tuple[Panel, ...]:
    """The parts that add up to the metric; the strongest features; what removing each of these does."""
    listed = [one.contribution for one in split.features]
    parts = {
        "all features": _sum_of([*listed, split.other_features]),
        "b_dec": split.b_dec,
        "error ε": split.error,
        "over the norm": split.over_norm,
        "outside the site": _outside(split),
    }
    where = f"{split.site} {split.layer}, by {split.sae}"
    panels: list[Panel] = [_bars(parts, f"the parts of {where}")]
    if listed:
        shown = split.features[:_SHOWN]
        bars = {name_among_others(split.promoted_logits, one.index): one.contribution for one in shown}
        bars["other features"] = _sum_of([*listed[_SHOWN:], split.other_features])
        panels += [_bars(bars, f"the {len(shown)} strongest of {split.active} features that fire"), _check(split)]
    return tuple(panels)


def _bars(parts: dict[str, ScalarStatistic], heading: str) -> Bars:
    values, errors = scalars([*parts.values()])
    return Bars(tuple(parts), values, "contribution (logits)", errors, heading)


def _check(split: FeatureSplit) -> Scatter:
    shown = split.features[:_SHOWN]
    return Scatter(
        exact=-np.array([one.removed.mean for one in shown], dtype=np.float32),
        estimated=np.array([one.contribution.mean for one in shown], dtype=np.float32),
        strongest=(True,) * len(shown),
        value_name="contribution (logits)",
        title="the check: each feature removed, the norm at its own scale",
    )


def _outside(split: FeatureSplit) -> ScalarStatistic:
    terms = split.outside
    every = (
        terms.embedding,
        terms.heads,
        terms.attention_bias,
        terms.mlps,
        terms.final_norm_bias,
        terms.unembedding_bias,
    )
    return _alone(sum(float(array(estimate).sum()) for estimate in every), split.error.count)


def _sum_of(parts: list[ScalarStatistic]) -> ScalarStatistic:
    """One part as it is; of several the mean alone, as their errors do not add up."""
    return parts[0] if len(parts) == 1 else _alone(sum(part.mean for part in parts), parts[0].count)


def _alone(mean: float, count: int) -> ScalarStatistic:
    return ScalarStatistic(mean=mean, standard_error=None, count=count)
