"""Path patching: which parts act on which others directly (Wang et al. 2022, arXiv:2211.00593, appendix; Goldowsky-Dill
et al. 2023, arXiv:2304.05969).

Per pair and sender, with the target run (corrupted when denoising) and the source run (clean):

1. run the target with the sender's output set to the source's and every later head's z to the target's own, MLPs
   recomputed or kept likewise, and take what each receiver makes of its input there: q, k, v, an MLP's neurons;
2. run the target with the receivers set to what was taken and all else recomputed, and read the metric;
3. effect = m(patched) − m(unpatched target); normalized as in activation patching.

For `logits` the metric is read in the first run. Before the first position at which the two prompts differ a sender
has nothing to send, and its effect is 0.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from services.contracts.inputs import TokenizedPair
from services.contracts.model import ModelFacts
from services.contracts.patching import PatchingResult, PatchingSpec
from services.contracts.path_patching import PathPatching
from services.contracts.site import SiteName
from services.engine.outcome import Outcome
from services.engine.row import Intervention, Row
from services.methods.context import MethodContext
from services.methods.metric import finite, measure
from services.methods.patched import PatchedRuns, report
from services.methods.paths import PairAtWork, Path, Paths
from services.methods.sweep import ROWS_AT_ONCE

VERSION = "1"

RUN_BYTES = 128 * 2**20
"""Pairs are worked on together while their unpatched runs take up to about this much: the engine must keep them."""

CAPTURED_BYTES = 64 * 2**20
"""Paths are run together while what is taken at their receivers takes up to about this much."""


def run(spec: PatchingSpec, method: PathPatching, context: MethodContext) -> PatchingResult:
    """Patch every sender of every pair. Effects are in the metric's units; positive means that the metric rose."""
    paths = Paths(method, context.model.facts)
    pairs = [_at_work(pair, spec, context) for pair in context.inputs.pairs]
    patched: list[PatchedRuns] = []
    for together in _together(pairs, context.model.facts):
        patched += _patch(together, paths, method, context)
    reported = report(patched, paths.dims, spec, context)
    return PatchingResult(
        method="path_patching",
        mode=method.mode,
        senders=tuple(map(str, paths.senders)),
        receivers=method.receivers,
        positions=method.positions,
        pairs=reported.pairs,
        effects=reported.effects,
        normalized=reported.normalized,
        warnings=tuple(context.warnings),
        provenance=context.provenance("path_patching", VERSION),
        usage=context.usage(),
    )


def _at_work(pair: TokenizedPair, spec: PatchingSpec, context: MethodContext) -> PairAtWork:
    clean, corrupted = pair.clean.ids, pair.corrupted.ids
    target, source = (corrupted, clean) if spec.method.mode == "denoising" else (clean, corrupted)
    return PairAtWork(pair, measure(spec.metric, pair, context.inputs), target, source)


def _together(pairs: Sequence[PairAtWork], facts: ModelFacts) -> Iterator[list[PairAtWork]]:
    width = 2 * facts.d_model + (facts.heads + 2 * facts.kv_heads) * facts.d_head
    together: list[PairAtWork] = []
    taken = 0
    for pair in pairs:
        size = 2 * 4 * len(pair.target) * facts.layers * width
        if together and taken + size > RUN_BYTES:
            yield together
            together, taken = [], 0
        together.append(pair)
        taken += size
    if together:
        yield together


def _patch(
    pairs: Sequence[PairAtWork], paths: Paths, method: PathPatching, context: MethodContext
) -> list[PatchedRuns]:
    """The numbers of some pairs, in their order."""
    outcomes = iter(context.run([row for pair in pairs for row in paths.unpatched(pair)]))
    targets, sources = np.zeros(len(pairs)), np.zeros(len(pairs))
    for index, pair in enumerate(pairs):
        targets[index], sources[index] = (
            finite(pair.measured.value(next(outcomes).values()), f"the metric on the {name} run")
            for name in ("target", "source")
        )
    metrics = np.repeat(targets[:, None], int(np.prod(paths.shape)), axis=1)
    for group in _groups(pairs, paths, context.model.facts):
        for path, outcome in zip(group, _run(group, pairs, paths, context), strict=True):
            metrics[path.pair, path.cell] = pairs[path.pair].measured.value(outcome.values())
    effects = (metrics - targets[:, None]).reshape(-1, *paths.shape)
    clean, corrupted = (sources, targets) if method.mode == "denoising" else (targets, sources)
    return [PatchedRuns(float(clean[index]), float(corrupted[index]), effects[index]) for index in range(len(pairs))]


def _groups(pairs: Sequence[PairAtWork], paths: Paths, facts: ModelFacts) -> Iterator[list[Path]]:
    """All paths of some pairs, as many at once as memory has room for."""
    group: list[Path] = []
    taken = 0
    for index, pair in enumerate(pairs):
        for path in paths.of(index, pair):
            size = _captured_bytes(path, facts)
            if group and (taken + size > CAPTURED_BYTES or len(group) == ROWS_AT_ONCE):
                yield group
                group, taken = [], 0
            group.append(path)
            taken += size
    if group:
        yield group


def _captured_bytes(path: Path, facts: ModelFacts) -> int:
    return sum(
        4 * len(capture.positions or ()) * (facts.d_mlp if capture.site.name is SiteName.MLP_POST else facts.d_head)
        for capture in path.captures
    )


def _run(group: Sequence[Path], pairs: Sequence[PairAtWork], paths: Paths, context: MethodContext) -> Sequence[Outcome]:
    """What the metric is read of, path by path.

    The unpatched run goes along with every step: with it, the planner grows the paths on the run that is there.
    """
    unpatched = [Row(pairs[index].target, readout=pairs[index].measured.readout) for index in _numbers(group)]
    first = [
        Row(
            pairs[path.pair].target,
            path.interventions,
            path.captures,
            pairs[path.pair].measured.readout if paths.direct else None,
        )
        for path in group
    ]
    outcomes = context.run([*unpatched, *first])[len(unpatched) :]
    if paths.direct:
        return outcomes
    second = [
        Row(
            pairs[path.pair].target,
            tuple(
                Intervention(capture.site, capture.positions, "set", taken)
                for capture, taken in outcome.captures.items()
            ),
            readout=pairs[path.pair].measured.readout,
        )
        for path, outcome in zip(group, outcomes, strict=True)
    ]
    return context.run([*unpatched, *second])[len(unpatched) :]


def _numbers(group: Sequence[Path]) -> list[int]:
    """The pairs that a group's paths are of."""
    return sorted({path.pair for path in group})
