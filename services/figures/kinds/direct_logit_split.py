"""The features of an SAE in direct logit attribution: their terms beside the rest, and what removing them does."""

import numpy as np

from services.contracts.direct_logit_features import FeatureSplit
from services.contracts.tensor import ScalarStatistic
from services.figures.bars import Bars
from services.figures.kinds.feature_names import numbered_feature
from services.figures.kinds.reading import array, scalars
from services.figures.picture import Panel
from services.figures.scatter import Scatter

_SHOWN = 30


def split_panels(split: FeatureSplit) -> tuple[Panel, ...]:
    """The strongest features, then the other parts of the site, then all components outside it in one bar."""
    shown = split.features[:_SHOWN]
    others = {
        "other features": _sum_of([split.other_features, *(one.contribution for one in split.features[_SHOWN:])]),
        "b_dec": split.b_dec,
        "error ε": split.error,
        "over the norm": split.over_norm,
        "outside the site": _outside(split),
    }
    others = {name: part for name, part in others.items() if name != "over the norm" or part.mean}
    values, errors = scalars([*(one.contribution for one in shown), *others.values()])
    names = (*(numbered_feature(one.index) for one in shown), *others)
    heading = f"{split.site} {split.layer} by {split.sae}: {len(shown)} of {split.active} features that fire"
    bars = Bars(names, values, "contribution (logits)", errors, heading)
    if not shown:
        return (bars,)
    check = Scatter(
        exact=-np.array([one.removed.mean for one in shown], dtype=np.float32),
        estimated=np.array([one.contribution.mean for one in shown], dtype=np.float32),
        strongest=(True,) * len(shown),
        value_name="contribution",
        title="the check: each feature removed, the norm at its own scale",
    )
    return (bars, check)


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
