"""Ablation: take an activation out of the run, and read what the metric loses (Olsson et al. 2022; Wang et al. 2022;
Chan et al. 2022 for resampling; Zhang & Nanda 2024, arXiv:2309.16042, for how they differ).

1. read the metric on the whole model;
2. one row per cell of the sweep sets one site's activation to zero, to its mean over reference prompts, or to that of a
   drawn reference, and reads the metric;
3. effect = m(ablated) − m(whole); over several draws, their mean.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from jaxtyping import Float64

from services.contracts.ablation import (
    AblatedExample,
    AblationResult,
    AblationSpec,
    MeanAblation,
    ResampleAblation,
    SweptAblation,
    ZeroAblation,
)
from services.contracts.inputs import TokenizedExample
from services.contracts.tensor import InlineTensor
from services.engine.row import Intervention, Row
from services.methods.context import MethodContext
from services.methods.metric import Measure, Reading, finite, measure
from services.methods.references import (
    REFERENCE_BYTES,
    ByLayer,
    Replacement,
    Zero,
    load,
    mean_by_position,
    mean_over_positions,
    reference_bytes,
)
from services.methods.statistics import estimate
from services.methods.sweep import ROWS_AT_ONCE, Cell, Sweep, sweep_of

VERSION = "1"

Effects = Float64[np.ndarray, "..."]


@dataclass(frozen=True)
class _Ablated:
    """One example's numbers."""

    baseline: float
    effects: Effects


@dataclass(frozen=True)
class _Work:
    """One example and what takes its activations' place: one replacement a sample."""

    example: TokenizedExample
    measured: Measure
    replacements: Sequence[Replacement | Zero]


def run(spec: AblationSpec, method: SweptAblation, context: MethodContext) -> AblationResult:
    """Ablate every cell of every example. Effects are in the metric's units; negative means that the metric fell."""
    examples = context.inputs.examples
    sweep = sweep_of(method, context.model.facts, len(examples[0].prompt.ids))
    works = _works(spec, method, sweep, context)
    at_once = max(1, ROWS_AT_ONCE // (sweep.size * _samples(method) + 1))
    ablated: list[_Ablated] = []
    while together := list(islice(works, at_once)):
        ablated += _ablate(together, sweep, method, context)
    return AblationResult(
        method=method.type,
        site=sweep.site,
        layers=sweep.layers,
        heads=sweep.heads,
        positions=None if sweep.positions is None else tuple(int(position) for position in sweep.positions),
        over=method.averaged_over(context.inputs) if isinstance(method, MeanAblation) else None,
        seed=method.seed if isinstance(method, ResampleAblation) else None,
        examples=tuple(
            AblatedExample(
                tokens=example.prompt,
                baseline=numbers.baseline,
                effects=InlineTensor.of(numbers.effects, sweep.dims) if spec.per_example else None,
            )
            for example, numbers in zip(examples, ablated, strict=True)
        ),
        effects=estimate(np.stack([numbers.effects for numbers in ablated]), sweep.dims),
        warnings=tuple(context.warnings),
        provenance=context.provenance(method.type, VERSION),
        usage=context.usage(),
    )


def _samples(method: SweptAblation) -> int:
    return method.samples if isinstance(method, ResampleAblation) else 1


def _works(spec: AblationSpec, method: SweptAblation, sweep: Sweep, context: MethodContext) -> Iterator[_Work]:
    """The examples in order, with their replacements; references are run as they are needed."""
    for example, replacements in zip(context.inputs.examples, _replacements(method, sweep, context), strict=True):
        yield _Work(example, measure(spec.metric, example, context.inputs), replacements)


def _replacements(
    method: SweptAblation, sweep: Sweep, context: MethodContext
) -> Iterator[Sequence[Replacement | Zero]]:
    layers = sweep.layers or (None,)
    examples = len(context.inputs.examples)
    match method:
        case ZeroAblation():
            yield from [(Zero(),)] * examples
        case MeanAblation() if method.averaged_over(context.inputs) == "position":
            yield from [(Replacement(mean_by_position(sweep.site, layers, context), aligned=True),)] * examples
        case MeanAblation():
            yield from [(Replacement(mean_over_positions(sweep.site, layers, context), aligned=False),)] * examples
        case ResampleAblation():
            yield from _resampled(method, sweep, context)


def _resampled(method: ResampleAblation, sweep: Sweep, context: MethodContext) -> Iterator[list[Replacement]]:
    """Per example one replacement a sample, taken from references that stay in memory while there is room."""
    layers = sweep.layers or (None,)
    references, examples = context.inputs.references, context.inputs.examples
    drawn = method.drawn(len(examples))
    known: dict[int, ByLayer] = {}
    generator = random.Random(method.seed)  # noqa: S311 - a reproducible draw, no secret
    for number, example in enumerate(examples):
        missing = {*drawn[number]} - set(known)
        if missing and _bytes([*known, *missing], sweep, context) > REFERENCE_BYTES:
            known.clear()
        if missing:
            ahead = _ahead(drawn[number:], known, sweep, context)
            found = load([references[index] for index in ahead], sweep.site, layers, context)
            known |= dict(zip(ahead, found, strict=True))
        yield [_gathered(known[index], len(example.prompt.ids), generator) for index in drawn[number]]


def _bytes(indices: Sequence[int], sweep: Sweep, context: MethodContext) -> int:
    layers, references = sweep.layers or (None,), context.inputs.references
    return sum(reference_bytes(references[index], sweep.site, layers, context) for index in indices)


def _ahead(
    drawn: Sequence[tuple[int, ...]], known: dict[int, ByLayer], sweep: Sweep, context: MethodContext
) -> list[int]:
    """References that the next examples need and that are not known: the first example's, then while there is room."""
    ahead: list[int] = []
    for number, draws in enumerate(drawn):
        missing = [index for index in dict.fromkeys(draws) if index not in known and index not in ahead]
        if number and _bytes([*known, *ahead, *missing], sweep, context) > REFERENCE_BYTES:
            break
        ahead += missing
    return ahead


def _gathered(reference: ByLayer, length: int, generator: random.Random) -> Replacement:
    """A reference's activations for each position of an example: its own, or those at drawn positions."""
    own = len(next(iter(reference.values())))
    if own == length:
        return Replacement(reference, aligned=True)
    chosen = [generator.randrange(own) for _ in range(length)]
    return Replacement({layer: activation[chosen] for layer, activation in reference.items()}, aligned=True)


def _ablate(works: list[_Work], sweep: Sweep, method: SweptAblation, context: MethodContext) -> list[_Ablated]:
    readings = (
        outcome.values() for outcome in context.run([row for work in works for row in _rows(work, sweep, method)])
    )
    count = 1 + sweep.size * _samples(method)
    return [_read(work.measured, [next(readings) for _ in range(count)], sweep) for work in works]


def _rows(work: _Work, sweep: Sweep, method: SweptAblation) -> Iterator[Row]:
    """The whole model, then every cell of every sample."""
    tokens, readout = work.example.prompt.ids, work.measured.readout
    yield Row(tokens, readout=readout)
    for replacement in work.replacements:
        for cell in sweep.cells():
            positions = _positions(cell, method, len(tokens))
            value = replacement.at(cell.site, positions)
            yield Row(tokens, (Intervention(cell.site, positions, "set", value),), readout=readout)


def _positions(cell: Cell, method: SweptAblation, length: int) -> tuple[int, ...] | None:
    if cell.position is not None:
        return (int(cell.position) % length,)
    return None if method.positions is None else tuple(position % length for position in method.positions)


def _read(measured: Measure, readings: list[Reading], sweep: Sweep) -> _Ablated:
    """Numbers from the readings, which come in the order of `_rows`."""
    baseline, *cells = [measured.value(reading) for reading in readings]
    finite(baseline, "the metric on the whole model")
    return _Ablated(baseline, np.array(cells).reshape(-1, *sweep.shape).mean(0) - baseline)
