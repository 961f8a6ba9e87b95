"""Direct logit attribution: what each component writes straight into the logits (Elhage et al. 2021, "A Mathematical
Framework for Transformer Circuits").

1. run each example once and take, at the metric's position, the embedding, every head's z, every MLP's output and the
   last residual stream;
2. hold the final norm's scale at the run's own value, which makes the rest linear (post-norms likewise);
3. a term is its component's output, centred where the norm centres, times the norm's gain, dotted with the metric's
   direction W_U[answer] (− W_U[foil]); biases of the final norm and of the unembedding are terms of their own;
4. where a model is attention alone, its MLPs' terms are zero;
5. the terms must add up to the metric, read independently from the logits before any soft cap.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from services.contracts.attribution import AttributionResult, AttributionSpec
from services.contracts.direct_logit_attribution import AttributedExample, DirectLogitOutcome, DirectLogitTerms
from services.contracts.inputs import TokenizedExample
from services.contracts.metric import LogitDiff
from services.contracts.site import SiteName
from services.engine.outcome import Outcome
from services.engine.readout import TokenLogits
from services.engine.row import Capture, Row, Site
from services.engine.weights import Weights
from services.methods.context import MethodContext
from services.methods.metric import finite
from services.methods.statistics import estimate

VERSION = "1"

TOLERANCE = 1e-4
"""Of the sum of the terms' magnitudes: how far their sum may be from the metric in float32."""

Direction = Float[Tensor, " d_model"]


@dataclass(frozen=True)
class Terms:
    """One example's terms, in logits before any soft cap."""

    metric: float
    embedding: Float64[np.ndarray, ""]
    heads: Float64[np.ndarray, "layer head"]
    attention_bias: Float64[np.ndarray, " layer"]
    mlps: Float64[np.ndarray, " layer"]
    final_norm_bias: Float64[np.ndarray, ""]
    unembedding_bias: Float64[np.ndarray, ""]

    def arrays(self) -> tuple[Float64[np.ndarray, "..."], ...]:
        biases = (self.attention_bias, self.final_norm_bias, self.unembedding_bias)
        return (self.embedding, self.heads, self.mlps, *biases)

    @property
    def sum(self) -> float:
        return float(sum(array.sum() for array in self.arrays()))

    @property
    def magnitude(self) -> float:
        return float(sum(np.abs(array).sum() for array in self.arrays()))


def run(spec: AttributionSpec, context: MethodContext) -> AttributionResult:
    """Attribute every example; a positive term raises the metric. Over many examples, means with standard errors."""
    examples = context.inputs.examples
    facts = context.model.facts
    rows = [_row(example, spec, facts.layers, has_mlps=facts.d_mlp > 0) for example in examples]
    outcomes = context.run(rows)
    weights = context.weights()
    all_terms = [
        _terms(row, outcome, _direction(example, spec, weights), _bias(example, spec, weights), weights)
        for example, row, outcome in zip(examples, rows, outcomes, strict=True)
    ]
    _warn_of_gaps(all_terms, context)
    outcome = DirectLogitOutcome(
        examples=tuple(
            AttributedExample(
                tokens=example.prompt,
                metric=terms.metric,
                sum_of_terms=terms.sum,
                gap=abs(terms.metric - terms.sum),
                terms=_reported([terms]) if spec.per_example else None,
            )
            for example, terms in zip(examples, all_terms, strict=True)
        ),
        terms=_reported(all_terms),
    )
    return AttributionResult(
        attribution=outcome,
        warnings=tuple(context.warnings),
        provenance=context.provenance("direct_logit_attribution", VERSION),
        usage=context.usage(),
    )


def _row(example: TokenizedExample, spec: AttributionSpec, layers: int, *, has_mlps: bool) -> Row:
    at = (_position(example),)
    written = (SiteName.Z, SiteName.MLP_OUT) if has_mlps else (SiteName.Z,)
    captures = [Capture(Site(SiteName.RESID_PRE, 0), at), Capture(Site(SiteName.RESID_POST, layers - 1), at)]
    for layer in range(layers):
        captures += [Capture(Site(site, layer), at) for site in written]
    return Row(example.prompt.ids, captures=tuple(captures), readout=TokenLogits(at[0], _tokens(example, spec)))


def _terms(row: Row, outcome: Outcome, direction: Direction, bias: float, weights: Weights) -> Terms:
    taken = {(capture.site.name, capture.site.layer): outcome.captures[capture][0] for capture in row.captures}
    layers = 1 + max(layer for _, layer in taken if layer is not None)
    final = taken[SiteName.RESID_POST, layers - 1].to(direction)
    scale = weights.final_norm.scale(final)

    def written(term: Float[Tensor, "*term d_model"]) -> Float64[np.ndarray, "*term"]:
        logits = weights.final_norm.linear(term.to(direction), scale) @ direction
        return logits.double().cpu().numpy()

    heads = [weights.head_terms(layer, taken[SiteName.Z, layer].to(direction)) for layer in range(layers)]
    norm_bias = weights.final_norm.bias
    return Terms(
        metric=_metric(outcome, weights),
        embedding=written(taken[SiteName.RESID_PRE, 0]),
        heads=np.stack([written(by_head) for by_head, _ in heads]),
        attention_bias=np.stack([written(of_bias) for _, of_bias in heads]),
        mlps=np.array(
            [
                written(taken[SiteName.MLP_OUT, layer]) if (SiteName.MLP_OUT, layer) in taken else 0.0
                for layer in range(layers)
            ]
        ),
        final_norm_bias=np.array(0.0 if norm_bias is None else float(norm_bias @ direction)),
        unembedding_bias=np.array(bias),
    )


def _metric(outcome: Outcome, weights: Weights) -> float:
    """The metric as the run itself gives it, a final soft cap undone."""
    logits = [_uncapped(float(logit), weights.logit_soft_cap) for logit in outcome.values()]
    return finite(logits[0] - sum(logits[1:]), "the metric before the soft cap")


def _uncapped(logit: float, cap: float | None) -> float:
    """What the cap was given; infinite where it is saturated and that cannot be told any more."""
    if cap is None:
        return logit
    return cap * math.atanh(logit / cap) if abs(logit) < cap else math.copysign(math.inf, logit)


def _direction(example: TokenizedExample, spec: AttributionSpec, weights: Weights) -> Direction:
    directions = weights.logit_directions(torch.tensor(_tokens(example, spec)))
    return directions[0] - directions[1:].sum(dim=0)


def _bias(example: TokenizedExample, spec: AttributionSpec, weights: Weights) -> float:
    if weights.b_U is None:
        return 0.0
    biases = [float(weights.b_U[token]) * weights.logit_scale for token in _tokens(example, spec)]
    return biases[0] - sum(biases[1:])


def _tokens(example: TokenizedExample, spec: AttributionSpec) -> tuple[int, ...]:
    """The answer, and the foil where the metric has one."""
    assert example.answer is not None
    if not isinstance(spec.metric, LogitDiff):
        return (example.answer,)
    assert example.foil is not None
    return (example.answer, example.foil)


def _position(example: TokenizedExample) -> int:
    assert example.metric_position is not None
    return example.metric_position


def _warn_of_gaps(all_terms: list[Terms], context: MethodContext) -> None:
    worst = max(abs(terms.metric - terms.sum) / max(terms.magnitude, 1e-30) for terms in all_terms)
    if worst > TOLERANCE:
        context.warnings.append(
            f"the terms miss the metric by up to {worst:.2g} of the sum of their magnitudes (expected at most "
            f"{TOLERANCE:g}): {context.model.dtype} may be too coarse for this model"
        )


def _reported(all_terms: list[Terms]) -> DirectLogitTerms:
    return DirectLogitTerms(
        embedding=estimate(np.stack([terms.embedding for terms in all_terms]), ()),
        heads=estimate(np.stack([terms.heads for terms in all_terms]), ("layer", "head")),
        attention_bias=estimate(np.stack([terms.attention_bias for terms in all_terms]), ("layer",)),
        mlps=estimate(np.stack([terms.mlps for terms in all_terms]), ("layer",)),
        final_norm_bias=estimate(np.stack([terms.final_norm_bias for terms in all_terms]), ()),
        unembedding_bias=estimate(np.stack([terms.unembedding_bias for terms in all_terms]), ()),
    )
