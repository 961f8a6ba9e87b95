"""Features that tell two sets of prompts, or marked tokens from others: how well, and how strongly they fire."""

import numpy as np

from services.contracts.feature_contrast import FeatureContrast
from services.contracts.feature_search import FeatureSearch
from services.contracts.features import FeaturesResult
from services.figures.bars import Bars, PairedBars
from services.figures.kinds.feature_names import feature_name
from services.figures.kinds.reading import notes, pick, title
from services.figures.picture import Picture, nothing_to_draw

_STRONGEST = 20


def contrast_picture(result: FeaturesResult, contrast: FeatureContrast, example: int | None) -> Picture:
    """Hedges' g of the features that differ most surely, and their mean scores on both sets."""
    if example is not None:
        pick((), example)
    shown = contrast.features[:_STRONGEST]
    if not shown:
        raise nothing_to_draw("no feature fires on either set")
    names = tuple(feature_name(result.effects, feature.index) for feature in shown)
    effects = [np.nan if feature.hedges_g is None else feature.hedges_g for feature in shown]
    means = PairedBars(
        names=names,
        before=np.array([feature.baseline_mean for feature in shown], dtype=np.float32),
        after=np.array([feature.mean for feature in shown], dtype=np.float32),
        value_name=f"mean over prompts of the {contrast.score} activation",
        legend=("baseline", "prompts"),
    )
    bars = Bars(names=names, values=np.array(effects, dtype=np.float32), value_name="Hedges' g")
    discoveries = sum(feature.q_value <= 0.05 for feature in contrast.features)
    return Picture(
        title(result, f"contrast by {result.sae}", f"layer {result.layer} {result.site}"),
        ((bars, means),),
        notes(
            result,
            f"{contrast.prompts} prompts against {contrast.baseline_prompts}; {contrast.tested} features tested",
            f"{discoveries} of the {len(contrast.features)} listed have q ≤ 0.05 (Mann-Whitney, Benjamini-Hochberg)",
        ),
    )


def search_picture(result: FeaturesResult, search: FeatureSearch, example: int | None) -> Picture:
    """F1 of the features found, and their mean activations on the tokens marked and on the others."""
    if example is not None:
        pick((), example)
    shown = search.features[:_STRONGEST]
    if not shown:
        raise nothing_to_draw("no feature fires on the tokens marked")
    names = tuple(feature_name(result.effects, feature.index) for feature in shown)
    means = PairedBars(
        names=names,
        before=np.array([feature.mean_other for feature in shown], dtype=np.float32),
        after=np.array([feature.mean_marked for feature in shown], dtype=np.float32),
        value_name="mean activation",
        legend=("other tokens", "marked tokens"),
    )
    bars = Bars(names=names, values=np.array([each.f1 for each in shown], dtype=np.float32), value_name="F1 of firing")
    return Picture(
        title(result, f"search by {result.sae}", f"layer {result.layer} {result.site}"),
        ((bars, means),),
        notes(
            result,
            f"{search.marked} tokens marked, {search.others} others",
            f"{search.candidates} features fire on a marked token",
        ),
    )
