"""Edge attribution patching: the strongest edges ranked; where every score was asked for, writer × reader."""

import numpy as np

from services.contracts.attribution import AttributionResult
from services.contracts.edge_attribution_patching import EdgeAttributionOutcome
from services.contracts.tensor import FloatArray
from services.figures.bars import Bars
from services.figures.heatmap import Heatmap
from services.figures.kinds.patching import baselines_of
from services.figures.kinds.reading import array, not_reported, notes, of_all, pick, scalars, title
from services.figures.kinds.sweep import strongest
from services.figures.picture import MAX_CELLS, Panel, Picture, nothing_to_draw
from services.figures.scale import signed

_RANKED = 30
_VARIANTS = {"eap": "EAP", "eap_ig_inputs": "EAP-IG (inputs)", "eap_ig_activations": "EAP-IG (activations)"}
_SCORE = "score (effect on the metric)"


def edges_picture(result: AttributionResult, outcome: EdgeAttributionOutcome, example: int | None) -> Picture:
    scores = _scores(outcome, example)
    drawable = scores is not None and scores.size <= MAX_CELLS // 2
    panels: list[Panel] = [_ranked(outcome, scores, example)]
    if scores is not None and drawable:
        panels.append(_matrix(outcome, scores))
    pairs = outcome.pairs if example is None else (pick(outcome.pairs, example),)
    return Picture(
        title(result, _VARIANTS[outcome.variant]),
        tuple((panel,) for panel in panels),
        notes(
            result,
            of_all(len(outcome.pairs), "pair", example),
            baselines_of(pairs),
            f"{outcome.edge_counts.edges:,} edges in all",
            "" if scores is None or drawable else "the scores are too many to draw: fetch them from /result",
        ),
    )


def _scores(outcome: EdgeAttributionOutcome, example: int | None) -> FloatArray | None:
    """writer × reader of all pairs or of one; None where the result has none."""
    if example is None or (len(outcome.pairs) == 1 and example == 0):
        return None if outcome.scores is None else array(outcome.scores)
    scores = pick(outcome.pairs, example).scores
    if scores is None:
        raise not_reported(example, "per_example")
    return array(scores)


def _ranked(outcome: EdgeAttributionOutcome, scores: FloatArray | None, example: int | None) -> Bars:
    if example is not None and scores is not None:
        flat = scores.reshape(-1)
        chosen = strongest(flat, _RANKED)
        names = [f"{outcome.writers[at // scores.shape[1]]}->{outcome.readers[at % scores.shape[1]]}" for at in chosen]
        return _bars(names, flat[chosen], None)
    if not outcome.edges:
        raise nothing_to_draw("the result names no edge")
    edges = outcome.edges[:_RANKED]
    values, errors = scalars([edge.score for edge in edges])
    return _bars([edge.edge for edge in edges], values, errors)


def _bars(names: list[str], values: FloatArray, errors: FloatArray | None) -> Bars:
    known = np.isfinite(values)
    kept = [name for name, finite in zip(names, known, strict=True) if finite]
    return Bars(
        names=tuple(kept),
        values=values[known],
        value_name=_SCORE,
        errors=None if errors is None else errors[known],
        title=f"the {len(kept)} strongest edges",
    )


def _matrix(outcome: EdgeAttributionOutcome, scores: FloatArray) -> Heatmap:
    return Heatmap(
        values=scores,
        rows=outcome.writers,
        columns=outcome.readers,
        scale=signed(_SCORE, scores),
        title="all edges (grey: there is none)",
        row_name="writer",
        column_name="reader",
    )
