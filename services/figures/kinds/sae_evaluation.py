"""SAE evaluation: losses, fractions and feature densities, with the norm filter beside without it."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from services.contracts.sae_evaluation import SaeEvaluationResult, SaeFidelity
from services.contracts.tensor import FloatArray
from services.figures.bars import Bars, PairedBars
from services.figures.kinds.reading import notes, number, pick, title
from services.figures.picture import Picture, nothing_to_draw

_LEGEND = ("without norm filter", "with norm filter")
_RUNS = ("clean", "SAE", "mean ablation", "zero ablation")
_FRACTIONS = (
    "explained variance",
    "cosine",
    "loss recovered (zero)",
    "loss recovered (mean)",
    "KL recovered (zero)",
    "KL recovered (mean)",
    "dead features",
    "dense features",
)

Read = Callable[[SaeFidelity], Sequence[float | None]]


def sae_evaluation_picture(result: SaeEvaluationResult, example: int | None) -> Picture:
    """Over all prompts together. Raises Conflict(NO_FIGURE) or Refused(UNKNOWN_EXAMPLE) for one alone."""
    if example is not None:
        pick(range(result.prompts), example)
        raise nothing_to_draw("the figures are of all prompts together: send a job of that one alone")
    ways = _ways(result)
    names, histogram = _bins(ways)
    losses = _panel(ways, _RUNS, lambda way: _losses(result, way), "cross-entropy (nats)")
    fractions = _panel(ways, _FRACTIONS, _fractions, "fraction of 1")
    densities = _panel(ways, names, histogram, "features", "log10(fraction of tokens on which a feature fires)")
    counted = f"{result.prompts} prompts, {result.tokens} tokens, {result.tokens_over_norm} over the norm threshold"
    return Picture(
        title(result, f"evaluation of {result.sae}", f"layer {result.layer} {result.site}"),
        ((losses,), (fractions,), (densities,)),
        notes(result, counted, *(_summary(name, way) for name, way in ways.items())),
    )


def _ways(result: SaeEvaluationResult) -> dict[str, SaeFidelity]:
    both = zip(_LEGEND, (result.without_norm_filter, result.with_norm_filter), strict=True)
    return {name: way for name, way in both if way is not None}


def _panel(
    ways: dict[str, SaeFidelity], names: tuple[str, ...], read: Read, value_name: str, heading: str = ""
) -> Bars | PairedBars:
    values = [_floats(read(way)) for way in ways.values()]
    if len(values) == 1:
        return Bars(names, values[0], value_name, title=heading or next(iter(ways)))
    return PairedBars(names, values[0], values[1], value_name, _LEGEND, heading)


def _floats(values: Sequence[float | None]) -> FloatArray:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float32)


def _losses(result: SaeEvaluationResult, way: SaeFidelity) -> tuple[float, ...]:
    spliced = (way.sae, way.mean_ablation, way.zero_ablation)
    return (result.cross_entropy, *(run.cross_entropy for run in spliced))


def _fractions(way: SaeFidelity) -> tuple[float | None, ...]:
    loss, kl = way.cross_entropy_recovered, way.kl_recovered
    recovered = (loss.against_zero, loss.against_mean, kl.against_zero, kl.against_mean)
    return (way.explained_variance, way.cosine, *recovered, way.dead_fraction, way.dense_fraction)


def _bins(ways: dict[str, SaeFidelity]) -> tuple[tuple[str, ...], Read]:
    """The bins from the first that holds a feature on, and their counts."""
    histograms = [way.density_histogram for way in ways.values()]
    filled = [np.flatnonzero(histogram.counts) for histogram in histograms]
    first = min((int(indices[0]) for indices in filled if len(indices)), default=len(histograms[0].counts) - 1)
    edges = histograms[0].edges
    names = tuple(f"{low:.2f} … {high:.2f}".replace("-", "−") for low, high in pairwise(edges))
    return names[first:], lambda way: way.density_histogram.counts[first:]


def _summary(name: str, way: SaeFidelity) -> str:
    if way.l0 is None or way.mse is None:
        return f"{name}: no token to measure on"
    return f"{name}: L0 {way.l0:.1f}, MSE {way.mse:.4g} per dimension, KL(clean to SAE) {number(way.sae.kl)} nats"
