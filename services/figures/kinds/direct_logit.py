"""Direct logit attribution: the strongest components ranked, and every head and MLP by layer."""

import numpy as np

from services.contracts.attribution import AttributionResult
from services.contracts.direct_logit_attribution import DirectLogitOutcome, DirectLogitTerms
from services.contracts.tensor import Estimate, FloatArray
from services.figures.bars import Bars
from services.figures.kinds.reading import array, error, not_reported, notes, number, of_all, pick, title
from services.figures.kinds.sweep import heads_and_mlps, strongest
from services.figures.picture import Picture
from services.figures.scale import signed

_RANKED = 20
_LOGITS = "contribution (logits)"


def direct_logit_picture(result: AttributionResult, outcome: DirectLogitOutcome, example: int | None) -> Picture:
    terms = _terms(outcome, example)
    heads, mlps = array(terms.heads), array(terms.mlps)
    by_layer = heads_and_mlps(heads, mlps, signed(_LOGITS, heads, mlps), "heads and MLPs")
    examples = outcome.examples if example is None else (pick(outcome.examples, example),)
    metric = float(np.mean([one.metric for one in examples]))
    return Picture(
        title(result, "direct logit attribution"),
        ((_ranked(terms), by_layer),),
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
        ([f"a{layer}.h{head}" for layer in range(layers) for head in range(heads)], terms.heads),
        ([f"attention bias {layer}" for layer in range(layers)], terms.attention_bias),
        ([f"m{layer}" for layer in range(layers)], terms.mlps),
        (["final norm bias"], terms.final_norm_bias),
        (["unembedding bias"], terms.unembedding_bias),
    ]


def _errors(estimates: list[Estimate], chosen: list[int]) -> FloatArray | None:
    errors = [error(estimate) for estimate in estimates]
    known = [one.reshape(-1) for one in errors if one is not None]
    return np.concatenate(known)[chosen] if len(known) == len(errors) else None
