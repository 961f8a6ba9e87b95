"""Feature attribution: the strongest features and the error as bars, and the estimates against exact patching, of whole
features and (by position) of single cells."""

import numpy as np

from services.contracts.attribution import AttributionResult
from services.contracts.feature_attribution import FeatureAttributionOutcome, FeatureCheck, PositionCheck
from services.figures.bars import Bars
from services.figures.kinds.feature_names import name_among_others
from services.figures.kinds.reading import not_reported, notes, number, of_all, pick, scalars, title
from services.figures.picture import Picture
from services.figures.scatter import Scatter

_SHOWN = 30
_ESTIMATES = {"gradient_x_activation": "gradient × activation", "integrated_gradients": "integrated gradients"}


def feature_attribution_picture(
    result: AttributionResult, outcome: FeatureAttributionOutcome, example: int | None
) -> Picture:
    """Means over all pairs or examples; of one among several there is no picture."""
    if example is not None:
        pick(outcome.runs, example)
        if len(outcome.runs) > 1:
            raise not_reported(example)
    shown = outcome.features[:_SHOWN]
    values, errors = scalars([*(one.effect for one in shown), outcome.error.estimated])
    names = (*(name_among_others((), one.index) for one in shown), "error ε")
    bars = Bars(names, values, "estimated effect on the metric", errors, f"the {len(shown)} strongest features")
    checks, total, placed = [_scatter(outcome.check, "the check: features patched exactly")], outcome.total, ""
    if outcome.check_by_position is not None:
        checks.append(_scatter(outcome.check_by_position, "the check: one position each"))
        placed = f", by position {number(outcome.check_by_position.largest_error)}"
    what = "example" if outcome.source == "zero" else "pair"
    return Picture(
        title(result, "feature attribution", _ESTIMATES[outcome.estimate], f"{outcome.site} {outcome.layer}"),
        ((bars, *checks),),
        notes(
            result,
            of_all(len(outcome.runs), what, example),
            f"sum of all features and ε {number(total.estimated.mean)}, the site replaced {number(total.exact.mean)}",
            f"check: largest error {number(outcome.check.largest_error)}{placed}",
        ),
    )


def _scatter(check: FeatureCheck | PositionCheck, title: str) -> Scatter:
    """Estimated and exact effects of what was checked."""
    return Scatter(
        exact=np.array([cell.exact for cell in check.cells], dtype=np.float32),
        estimated=np.array([cell.estimated for cell in check.cells], dtype=np.float32),
        strongest=tuple(cell.chosen == "top" for cell in check.cells),
        value_name="effect on the metric",
        title=title,
    )
