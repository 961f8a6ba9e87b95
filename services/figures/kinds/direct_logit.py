"""Direct logit attribution: the strongest components ranked, every head and MLP by layer, and the splits asked for."""

import numpy as np

from services.contracts.attribution import AttributionResult
from services.contracts.direct_logit_attribution import DirectLogitOutcome, NeuronContribution
from services.contracts.direct_logit_terms import DirectLogitTerms
from services.contracts.tensor import Estimate, FloatArray
from services.figures.bars import Bars
from services.figures.heatmap import Heatmap
from services.figures.kinds.direct_logit_split import split_panels
from services.figures.kinds.reading import array, error, not_reported, notes, number, of_all, pick, scalars, title
from services.figures.kinds.sweep import heads_and_mlps, numbered, position_names, strongest, strongest_rows
from services.figures.picture import Panel, Picture, grid
from services.figures.scale import signed

_RANKED = 20
_IN_A_ROW = 2
_LOGITS = "contribution (logits)"


def direct_logit_picture(result: AttributionResult, outcome: DirectLogitOutcome, example: int | None) -> Picture:
    """The splits by position, by source and by neuron are means over all examples, and drawn for all alone."""
    terms = _terms(outcome, example)
    heads, mlps = array(terms.heads), array(terms.mlps)
    by_layer = heads_and_mlps(heads, mlps, signed(_LOGITS, heads, mlps), "heads and MLPs")
    every = example is None or len(outcome.examples) == 1
    splits = _splits(outcome) if every else ()
    examples = outcome.examples if example is None else (pick(outcome.examples, example),)
    metric = float(np.mean([one.metric for one in examples]))
    return Picture(
        title(result, "direct logit attribution"),
        ((_ranked(terms), by_layer), *splits),
        notes(
            result, of_all(len(outcome.examples), "example", example), f"metric {number(metric)}, the sum of all terms"
        ),
    )


def _terms(outcome: DirectLogitOutcome, example: int | None) -> DirectLogitTerms:
    if example is None or (len(outcome.examples) == 1 and example == 0):
        return outcome.terms
    terms = pick(outcome.examples, example).terms
    if terms is None:
        raise not_reported(example, "per_example")
    return terms


def _ranked(terms: DirectLogitTerms) -> Bars:
    """The components that contribute most, whatever their sign."""
    named = _named(terms)
    values = np.concatenate([array(estimate).reshape(-1) for _, estimate in named])
    names = [name for names, _ in named for name in names]
    chosen = strongest(values, _RANKED)
    left_out = len(names) - len(chosen)
    return Bars(
        names=tuple(names[index] for index in chosen),
        values=values[chosen],
        value_name=_LOGITS,
        errors=_errors([estimate for _, estimate in named], chosen),
        title=f"the {len(chosen)} strongest of {len(names)} components" if left_out else "all components",
    )


def _named(terms: DirectLogitTerms) -> list[tuple[list[str], Estimate]]:
    layers, heads = array(terms.heads).shape
    return [
        (["embedding"], terms.embedding),
        (_head_names(layers, heads), terms.heads),
        ([f"attention bias {layer}" for layer in range(layers)], terms.attention_bias),
        ([f"m{layer}" for layer in range(layers)], terms.mlps),
        (["final norm bias"], terms.final_norm_bias),
        (["unembedding bias"], terms.unembedding_bias),
    ]


def _head_names(layers: int, heads: int) -> list[str]:
    return [f"a{layer}.h{head}" for layer in range(layers) for head in range(heads)]


def _errors(estimates: list[Estimate], chosen: list[int]) -> FloatArray | None:
    errors = [error(estimate) for estimate in estimates]
    known = [one.reshape(-1) for one in errors if one is not None]
    return np.concatenate(known)[chosen] if len(known) == len(errors) else None


def _splits(outcome: DirectLogitOutcome) -> tuple[tuple[Panel, ...], ...]:
    """Rows of panels for what the job asked to be split further."""
    tokens = position_names([one.tokens for one in outcome.examples])
    panels: list[Panel] = []
    if outcome.by_position is not None:
        panels += _by_position(outcome.by_position, tokens)
    if outcome.by_source is not None:
        panels.append(_by_source(array(outcome.by_source), tokens))
    if outcome.neurons:
        panels.append(_neurons(outcome.neurons))
    features = () if outcome.split is None else (split_panels(outcome.split),)
    return (*grid(panels, _IN_A_ROW), *features)


def _by_position(terms: DirectLogitTerms, tokens: tuple[str, ...]) -> tuple[Heatmap, Heatmap]:
    """Attention's term (its heads and its bias) and the MLP's, layer × position."""
    attention = array(terms.heads).sum(axis=1) + array(terms.attention_bias)
    mlps = array(terms.mlps)
    scale = signed(_LOGITS, attention, mlps)
    layers = numbered(len(mlps))
    return (
        Heatmap(attention, layers, tokens, scale, "attention by position", "layer", "position"),
        Heatmap(mlps, layers, tokens, scale, "MLPs by position", "layer", "position"),
    )


def _by_source(values: FloatArray, tokens: tuple[str, ...]) -> Heatmap:
    layers, heads, sources = values.shape
    flat = values.reshape(layers * heads, sources)
    scale = signed(_LOGITS, values)
    return strongest_rows(flat, _head_names(layers, heads), tokens, scale, title="by source token", what="head")


def _neurons(neurons: tuple[NeuronContribution, ...]) -> Bars:
    shown = neurons[: 2 * _RANKED]
    values, errors = scalars([one.contribution for one in shown])
    names = tuple(f"m{one.layer} neuron {one.neuron}" for one in shown)
    return Bars(names, values, _LOGITS, errors, f"the {len(shown)} strongest neurons")
