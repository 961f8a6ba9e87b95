"""Activation patching: which activations of one run, put into the other, move the metric (Vig et al. 2020; Meng et al.
2022; Heimersheim & Nanda 2024, arXiv:2404.15255).

1. read the metric on the clean and on the corrupted run;
2. denoising patches clean activations into the corrupted run, noising corrupted ones into the clean run;
3. one row per cell of the sweep sets one site's activation to the other run's, and reads the metric;
4. effect = m(patched) − m(unpatched); normalized = effect / (m(other) − m(unpatched)), over many pairs of means.

Sites without heads are swept over [layer, position] (`embed` over [position]); sites with heads over [layer, head] with
every position patched at once, or over [layer, head, position] when positions are given.
"""

from collections.abc import Iterator
from itertools import islice

import numpy as np

from services.contracts.inputs import TokenizedPair
from services.contracts.patching import ActivationPatching, PatchingResult, PatchingSpec
from services.contracts.sweep import index_of
from services.engine.row import FromRun, Intervention, Row
from services.methods.context import MethodContext
from services.methods.metric import Measure, Reading, finite, measure
from services.methods.patched import PatchedRuns, report
from services.methods.sweep import ROWS_AT_ONCE, Sweep, sweep_of

VERSION = "1"


def run(spec: PatchingSpec, method: ActivationPatching, context: MethodContext) -> PatchingResult:
    """Sweep every pair. Effects are in the metric's units; positive means that patching raised the metric."""
    pairs = context.inputs.pairs
    sweep = sweep_of(method, context.model.facts, len(pairs[0].clean.ids))
    at_once = max(1, ROWS_AT_ONCE // (sweep.size + 2))
    waiting = iter(pairs)
    patched: list[PatchedRuns] = []
    while together := list(islice(waiting, at_once)):
        patched += _patch(together, sweep, spec, context)
    reported = report(patched, sweep.dims, spec, context)
    return PatchingResult(
        site=sweep.site,
        mode=method.mode,
        layers=sweep.layers,
        heads=sweep.heads,
        positions=sweep.positions,
        pairs=reported.pairs,
        effects=reported.effects,
        normalized=reported.normalized,
        warnings=tuple(context.warnings),
        provenance=context.provenance("activation_patching", VERSION),
        usage=context.usage(),
    )


def _patch(pairs: list[TokenizedPair], sweep: Sweep, spec: PatchingSpec, context: MethodContext) -> list[PatchedRuns]:
    measures = [measure(spec.metric, pair, context.inputs) for pair in pairs]
    rows = [row for pair, measured in zip(pairs, measures, strict=True) for row in _rows(pair, measured, sweep, spec)]
    readings = (outcome.values() for outcome in context.run(rows))
    return [_read(measured, [next(readings) for _ in range(2 + sweep.size)], sweep, spec) for measured in measures]


def _rows(pair: TokenizedPair, measured: Measure, sweep: Sweep, spec: PatchingSpec) -> Iterator[Row]:
    """The clean run, the corrupted run, then every cell."""
    clean, corrupted = pair.clean.ids, pair.corrupted.ids
    yield Row(clean, readout=measured.readout)
    yield Row(corrupted, readout=measured.readout)
    target, source = (corrupted, clean) if spec.method.mode == "denoising" else (clean, corrupted)
    for cell in sweep.cells():
        positions = None if cell.position is None else (index_of(cell.position, pair),)
        yield Row(target, (Intervention(cell.site, positions, "set", FromRun(source)),), readout=measured.readout)


def _read(measured: Measure, readings: list[Reading], sweep: Sweep, spec: PatchingSpec) -> PatchedRuns:
    """Numbers from the readings, which come in the order of `_rows`."""
    clean, corrupted, *cells = [measured.value(reading) for reading in readings]
    finite(clean, "the metric on the clean run")
    finite(corrupted, "the metric on the corrupted run")
    unpatched = corrupted if spec.method.mode == "denoising" else clean
    return PatchedRuns(clean, corrupted, np.array(cells).reshape(sweep.shape) - unpatched)
