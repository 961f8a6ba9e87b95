"""Interventions: what becomes of a run when any of its activations are changed.

1. run every example without and with the interventions, once for each of the metric and the top tokens;
2. effect = m(patched) − m(unpatched); for `kl_divergence` the unpatched run is the reference;
3. activations are the patched run's, after the interventions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from services.catalogue.tokenizer import Tokenizer
from services.contracts.activations import activation_dims
from services.contracts.inputs import TokenizedExample
from services.contracts.intervention import (
    ChangedExample,
    InterventionResult,
    InterventionSpec,
    MetricChange,
    PredictedToken,
    PredictedTokens,
    SiteIntervention,
    VectorValue,
)
from services.contracts.place import Place
from services.contracts.tensor import InlineTensor
from services.engine.check import site_shape
from services.engine.outcome import Outcome
from services.engine.readout import Readout, TopK, TopTokens
from services.engine.row import Capture, FromRun, Intervention, Row, Site, Value
from services.methods.context import MethodContext
from services.methods.metric import Measure, finite, measure
from services.methods.statistics import scalar_estimate

VERSION = "1"


@dataclass(frozen=True)
class _Asked:
    """What is read of one example's runs."""

    measured: Measure | None
    top: TopK | None
    captures: tuple[Capture, ...]

    def rows(self, tokens: tuple[int, ...], interventions: tuple[Intervention, ...]) -> Iterator[Row]:
        """An unpatched and a patched run per readout; the first patched one has the captures."""
        readouts: list[Readout] = [] if self.measured is None else [self.measured.readout]
        readouts += [] if self.top is None else [self.top]
        for number, readout in enumerate(readouts):
            yield Row(tokens, readout=readout)
            yield Row(tokens, interventions, () if number else tuple(dict.fromkeys(self.captures)), readout)
        if not readouts:
            yield Row(tokens, interventions, tuple(dict.fromkeys(self.captures)))


def run(spec: InterventionSpec, context: MethodContext) -> InterventionResult:
    """Change every example's run. Effects are in the metric's units; positive means that the metric has risen."""
    examples = context.inputs.examples
    asked = [_asked(example, spec, context) for example in examples]
    rows = [
        list(one.rows(example.prompt.ids, _interventions(example, spec, context)))
        for one, example in zip(asked, examples, strict=True)
    ]
    outcomes = iter(context.run([row for own in rows for row in own]))
    changed = tuple(
        _read(example, one, [next(outcomes) for _ in own], context.tokenizer)
        for example, one, own in zip(examples, asked, rows, strict=True)
    )
    effects = [example.metric.effect for example in changed if example.metric is not None]
    return InterventionResult(
        examples=changed,
        effect=scalar_estimate(np.array(effects)) if effects else None,
        warnings=tuple(context.warnings),
        provenance=context.provenance("intervention", VERSION),
        usage=context.usage(),
    )


def _asked(example: TokenizedExample, spec: InterventionSpec, context: MethodContext) -> _Asked:
    length = len(example.prompt.ids)
    return _Asked(
        measured=measure(spec.metric, example, context.inputs) if spec.metric is not None else None,
        top=TopK(spec.position % length, spec.top_k) if spec.top_k else None,
        captures=tuple(Capture(_site(place), place.indices(length)) for place in spec.activations),
    )


def _interventions(
    example: TokenizedExample, spec: InterventionSpec, context: MethodContext
) -> tuple[Intervention, ...]:
    runs = iter(context.inputs.references)
    length = len(example.prompt.ids)
    return tuple(
        Intervention(
            _site(intervention),
            intervention.indices(length),
            intervention.operation,
            _value(intervention, length, context)
            if isinstance(intervention.value, float | VectorValue)
            else FromRun(next(runs).ids),
        )
        for intervention in spec.interventions
    )


def _value(intervention: SiteIntervention, length: int, context: MethodContext) -> Value:
    """A number, or a vector in the site's own axes."""
    if not isinstance(intervention.value, VectorValue):
        assert isinstance(intervention.value, float)
        return intervention.value
    shape = site_shape(context.model.facts, _site(intervention), length)
    return torch.tensor(intervention.value.values, dtype=torch.float32).reshape(shape)


def _site(place: Place) -> Site:
    site, layer = place.located()
    return Site(site, layer, place.head)


def _read(
    example: TokenizedExample, asked: _Asked, outcomes: Sequence[Outcome], tokenizer: Tokenizer
) -> ChangedExample:
    """One example's figures from the outcomes of its rows, which come in the order of `_Asked.rows`."""
    waiting = list(outcomes)
    taken = waiting[1 if len(waiting) > 1 else 0].captures
    change = top = None
    if asked.measured is not None:
        unpatched, patched = (asked.measured.value(waiting.pop(0).values()) for _ in range(2))
        finite(unpatched, "the metric on the unpatched run")
        finite(patched, "the metric under the interventions")
        change = MetricChange(unpatched=unpatched, patched=patched, effect=patched - unpatched)
    if asked.top is not None:
        before, after = (_predicted(waiting.pop(0), tokenizer) for _ in range(2))
        top = PredictedTokens(unpatched=before, patched=after)
    return ChangedExample(
        tokens=example.prompt,
        metric=change,
        top=top,
        activations=tuple(
            InlineTensor.of(taken[capture], activation_dims(capture.site.name, capture.site.head))
            for capture in asked.captures
        ),
    )


def _predicted(outcome: Outcome, tokenizer: Tokenizer) -> tuple[PredictedToken, ...]:
    top = outcome.reading
    assert isinstance(top, TopTokens)
    return tuple(
        PredictedToken(token_id=token, token=tokenizer.string(token), logit=finite(logit, "a logit"))
        for token, logit in zip(top.tokens.tolist(), top.logits.tolist(), strict=True)
    )
