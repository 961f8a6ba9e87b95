"""Interventions: the metric before and after, the likeliest tokens before and after, and what was read."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from services.contracts.intervention import ChangedExample, InterventionResult, PredictedToken, PredictedTokens
from services.contracts.tensor import FloatArray
from services.figures import labels
from services.figures.bars import Bars, PairedBars
from services.figures.kinds.reading import notes, of_all, pick, scalars, title
from services.figures.picture import Panel, Picture, nothing_to_draw

_EXAMPLES = 40
_BEFORE_AND_AFTER = ("unpatched", "patched")


def intervention_picture(result: InterventionResult, example: int | None) -> Picture:
    """Of all examples the metric's change, of one its metric and its likeliest tokens without and with it."""
    examples = result.examples if example is None else (pick(result.examples, example),)
    panels: list[Panel] = []
    if result.effect is not None and example is None and len(examples) > 1:
        mean, error = scalars([result.effect])
        panels.append(Bars(("mean effect",), mean, "effect on the metric", error))
    if any(one.metric is not None for one in examples):
        panels.append(_metrics(examples, example or 0))
    if examples[0].top is not None:
        panels.append(_tokens(examples[0].top, example or 0))
    if not panels:
        raise nothing_to_draw("the job read activations alone: their picture is that of the kind `activations`")
    shown = min(len(examples), _EXAMPLES)
    omitted = f"the first {shown} of {len(examples)} examples" if shown < len(examples) else ""
    return Picture(
        title(result, "intervention"),
        tuple((panel,) for panel in panels),
        notes(result, of_all(len(result.examples), "example", example) if example is not None else "", omitted),
    )


def _metrics(examples: Sequence[ChangedExample], first: int) -> PairedBars:
    changes = [one.metric for one in examples[:_EXAMPLES] if one.metric is not None]
    return PairedBars(
        names=tuple(f"example {first + index}" for index in range(len(changes))),
        before=np.array([change.unpatched for change in changes], dtype=np.float32),
        after=np.array([change.patched for change in changes], dtype=np.float32),
        value_name="metric",
        legend=_BEFORE_AND_AFTER,
        title="metric",
    )


def _tokens(top: PredictedTokens, example: int) -> PairedBars:
    """Every token that is among the likeliest of either run; no bar where it is not among the run's own."""
    before = {token.token_id: token for token in top.unpatched}
    after = {token.token_id: token for token in top.patched}
    every = before | after
    return PairedBars(
        names=tuple(labels.token(token.token) for token in every.values()),
        before=_logits(every, before),
        after=_logits(every, after),
        value_name="logit",
        legend=_BEFORE_AND_AFTER,
        title=f"likeliest next tokens of example {example}",
    )


def _logits(tokens: Iterable[int], run: Mapping[int, PredictedToken]) -> FloatArray:
    return np.array([run[token].logit if token in run else np.nan for token in tokens], dtype=np.float32)
