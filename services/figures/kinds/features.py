"""Features: the strongest ones down, the prompt's tokens across, each cell an activation."""

import numpy as np

from services.contracts.features import FeaturesResult, PromptFeatures
from services.contracts.tensor import FloatArray
from services.figures import labels
from services.figures.bars import Bars
from services.figures.heatmap import Heatmap
from services.figures.kinds.feature_comparison import contrast_picture, search_picture
from services.figures.kinds.feature_names import feature_name
from services.figures.kinds.reading import array, blank, notes, of_all, pick, title
from services.figures.picture import Picture, nothing_to_draw
from services.figures.scale import sequential

_STRONGEST = 20


def features_picture(result: FeaturesResult, example: int | None) -> Picture:
    """Of one prompt: the features asked for, else those that fire most strongly on it, bars if no tokens are listed."""
    if result.contrast is not None:
        return contrast_picture(result, result.contrast, example)
    if result.search is not None:
        return search_picture(result, result.search, example)
    prompt = pick(result.prompts, example)
    if prompt.activations is None and not prompt.per_token:
        return _strongest_picture(result, prompt, example)
    if prompt.activations is not None:
        indices = result.features or ()
        values, why = array(prompt.activations).T, "no value"
    else:
        indices = tuple(feature.index for feature in prompt.top[:_STRONGEST])
        values, why = _listed(prompt, indices), "not among the token's own strongest features"
    if not indices:
        raise nothing_to_draw("no feature fires on this prompt")
    heatmap = Heatmap(
        values=values,
        rows=tuple(feature_name(result.effects, index) for index in indices),
        columns=labels.tokens(prompt.tokens.strings),
        scale=sequential("activation", values),
        row_name="feature",
        column_name="token",
        marked=frozenset(prompt.over_norm),
    )
    over_norm = "bold: over the SAE's norm threshold, left out" if heatmap.marked else ""
    explained = _explained(prompt)
    return Picture(
        title(result, f"features of {result.sae}", f"layer {result.layer} {result.site}"),
        ((heatmap,),),
        notes(result, of_all(len(result.prompts), "prompt", example or 0), blank(values, why), over_norm, explained),
    )


def _strongest_picture(result: FeaturesResult, prompt: PromptFeatures, example: int | None) -> Picture:
    strongest = prompt.top[:_STRONGEST]
    if not strongest:
        raise nothing_to_draw("no feature fires on this prompt")
    bars = Bars(
        names=tuple(feature_name(result.effects, feature.index) for feature in strongest),
        values=np.array([feature.max_activation for feature in strongest], dtype=np.float32),
        value_name="largest activation",
    )
    return Picture(
        title(result, f"features of {result.sae}", f"layer {result.layer} {result.site}"),
        ((bars,),),
        notes(result, of_all(len(result.prompts), "prompt", example or 0), _explained(prompt)),
    )


def _explained(prompt: PromptFeatures) -> str:
    rebuilt = prompt.reconstruction.explained_variance if prompt.reconstruction else None
    return "" if rebuilt is None else f"explained variance of this prompt {rebuilt:.3f}"


def _listed(prompt: PromptFeatures, indices: tuple[int, ...]) -> FloatArray:
    """feature × token, from what is listed per token; NaN for what is not."""
    values = np.full((len(indices), len(prompt.tokens.ids)), np.nan, dtype=np.float32)
    row = {index: at for at, index in enumerate(indices)}
    for token in prompt.per_token:
        for feature in token.features:
            if feature.index in row:
                values[row[feature.index], token.position] = feature.activation
    return values
