"""A direction from two sets of prompts: the difference of their mean activations (Marks and Tegmark 2023,
arXiv:2310.06824).

1. run every prompt up to the deepest layer asked for, and take one activation x per layer: at a position, or the mean
   over all positions but 0;
2. per layer v = mean x of the positive prompts − mean x of the negative ones;
3. project every x on v̂ = v / |v|, and say how well that tells the sets apart: AUROC, d′;
4. where prompts are held out, the same of those on the direction of all others.

In float64 from the activations on.
"""

import random
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float64

from services.contracts.direction import (
    DirectionResult,
    DirectionSpec,
    LayerDirection,
    ProjectedSet,
    Projections,
    Separation,
)
from services.contracts.errors import ErrorCode, JobFailed
from services.contracts.result import PromptTokens
from services.contracts.site import SiteName
from services.contracts.tensor import InlineTensor
from services.engine.row import Capture, Row, Site
from services.methods.context import MethodContext
from services.methods.grouping import together

VERSION = "1"

TOKENS_AT_ONCE = 2_048
"""Prompts are run together up to about this many tokens, so that a job's memory does not grow with its prompts."""

Sets = Float64[np.ndarray, "prompt layer d_model"]
Values = Float64[np.ndarray, " prompt"]


def run(spec: DirectionSpec, context: MethodContext) -> DirectionResult:
    """A vector per layer, in the units of the site's activations unless normalised; it points to the positive set."""
    layers = spec.layers_of(context.model.facts)
    taken = np.stack(list(_activations(spec, layers, context)))
    if not np.isfinite(taken).all():
        message = "an activation is not a number: this model overflows on these prompts; use a wider dtype"
        raise JobFailed(ErrorCode.METHOD_FAILED, message)
    count = len(spec.positive)
    positive, negative = taken[:count], taken[count:]
    kept = _kept(spec, len(positive)), _kept(spec, len(negative))
    vectors = _difference(positive, negative, layers)
    units = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    held_out = _held_out(positive, negative, kept, layers) if spec.held_out is not None else [None] * len(layers)
    projected = [np.einsum("pld,ld->lp", one, units) for one in (positive, negative)]
    return DirectionResult(
        method="difference_of_means",
        site=spec.site,
        position=spec.position,
        normalized=spec.normalize,
        vectors=InlineTensor.of(units if spec.normalize else vectors, ("layer", "d_model")),
        layers=tuple(
            LayerDirection(
                layer=layer,
                norm=float(np.linalg.norm(vectors[place])),
                mean_norm=float(np.linalg.norm(taken[:, place], axis=-1).mean()),
                separation=_separation(projected[0][place], projected[1][place]),
                held_out=held_out[place],
            )
            for place, layer in enumerate(layers)
        ),
        positive=_projected(context.inputs.references[:count], projected[0], kept[0]),
        negative=_projected(context.inputs.references[count:], projected[1], kept[1]),
        warnings=tuple(context.warnings),
        provenance=context.provenance("direction", VERSION, spec.held_out.seed if spec.held_out else None),
        usage=context.usage(),
    )


def _activations(
    spec: DirectionSpec, layers: Sequence[int], context: MethodContext
) -> Iterator[Float64[np.ndarray, "layer d_model"]]:
    """One activation per prompt and layer, in the order of the references."""
    for prompts in together(context.inputs.references, lambda prompt: len(prompt.ids), TOKENS_AT_ONCE):
        rows = [Row(prompt.ids, captures=_captures(spec, layers, len(prompt.ids))) for prompt in prompts]
        for row, outcome in zip(rows, context.run(rows), strict=True):
            yield np.stack([outcome.captures[capture].double().mean(dim=0).numpy() for capture in row.captures])


def _captures(spec: DirectionSpec, layers: Sequence[int], length: int) -> tuple[Capture, ...]:
    match spec.position:
        case "last":
            positions: tuple[int, ...] = (length - 1,)
        case "mean":
            positions = tuple(range(1, length))
        case index:
            positions = (index % length,)
    return tuple(Capture(Site(SiteName(spec.site), layer), positions) for layer in layers)


def _kept(spec: DirectionSpec, count: int) -> tuple[int, ...]:
    """The prompts of a set of `count` that are kept from the direction: at least one, and never all."""
    if spec.held_out is None:
        return ()
    size = min(max(1, round(spec.held_out.fraction * count)), count - 1)
    return tuple(sorted(random.Random(spec.held_out.seed).sample(range(count), size)))  # noqa: S311 - a stated split


def _difference(positive: Sets, negative: Sets, layers: Sequence[int]) -> Float64[np.ndarray, "layer d_model"]:
    vectors: Float64[np.ndarray, "layer d_model"] = positive.mean(axis=0) - negative.mean(axis=0)
    for layer, vector in zip(layers, vectors, strict=True):
        if not np.linalg.norm(vector) > 0:
            message = f"both sets have the same mean activation at layer {layer}: there is no direction between them"
            raise JobFailed(ErrorCode.METHOD_FAILED, message)
    return vectors


def _held_out(
    positive: Sets, negative: Sets, kept: tuple[Sequence[int], Sequence[int]], layers: Sequence[int]
) -> list[Separation | None]:
    fitted = _difference(np.delete(positive, kept[0], axis=0), np.delete(negative, kept[1], axis=0), layers)
    units = fitted / np.linalg.norm(fitted, axis=-1, keepdims=True)
    tried = [
        np.einsum("pld,ld->lp", one[list(places)], units) for one, places in ((positive, kept[0]), (negative, kept[1]))
    ]
    return [_separation(positives, negatives) for positives, negatives in zip(*tried, strict=True)]


def _separation(positive: Values, negative: Values) -> Separation:
    spread = np.sqrt((_variance(positive) + _variance(negative)) / 2)
    return Separation(
        positive=_projections(positive),
        negative=_projections(negative),
        auroc=_auroc(positive, negative),
        d_prime=float((positive.mean() - negative.mean()) / spread) if spread > 0 else None,
    )


def _auroc(positive: Values, negative: Values) -> float:
    """Over all pairs of a positive and a negative prompt."""
    difference = positive[:, None] - negative[None, :]
    return float((difference > 0).mean() + (difference == 0).mean() / 2)


def _variance(values: Values) -> float:
    return float(values.var(ddof=1)) if len(values) > 1 else float("nan")


def _projections(values: Values) -> Projections:
    return Projections(
        mean=float(values.mean()),
        standard_deviation=float(np.sqrt(_variance(values))) if len(values) > 1 else None,
        count=len(values),
    )


def _projected(
    tokens: Sequence[PromptTokens], projections: Float64[np.ndarray, "layer prompt"], kept: tuple[int, ...]
) -> ProjectedSet:
    return ProjectedSet(
        tokens=tuple(tokens), projections=InlineTensor.of(projections, ("layer", "prompt")), held_out=kept
    )
