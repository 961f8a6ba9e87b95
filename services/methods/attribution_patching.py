"""Attribution patching: activation patching of all nodes at once, to first order (Nanda 2023, "Attribution Patching";
Syed et al. 2023, arXiv:2310.10348). `atp_star` is Kramár et al. 2024 (arXiv:2403.00745): see `atp_star`.

1. run every pair's source run forward, and its target run (the one that patching changes) forward and backward, all
   pairs in a few batches;
2. effect of a node ≈ (a_source − a_target) · ∂m/∂a at the target run, summed over the node's own coordinates;
3. patch the largest estimates and a sample of the others exactly, and state how well they agree.

Effects are m(patched) − m(unpatched) in the metric's units, as activation patching has them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from services.contracts.attribution import AttributionResult, AttributionSpec
from services.contracts.attribution_patching import (
    AttributionPair,
    AttributionPatching,
    AttributionPatchingOutcome,
    NodeEffects,
)
from services.contracts.result import Baselines, PairTokens
from services.engine.outcome import Outcome
from services.engine.row import Capture, Gradients, Row
from services.methods.atp_star import grad_dropped, pattern_capture, through_the_pattern
from services.methods.attribution_check import check
from services.methods.attribution_nodes import Effects, NodeGrid, Task, TwoRuns, first_order, node_grids
from services.methods.context import MethodContext
from services.methods.metric import finite, measure
from services.methods.statistics import estimate

VERSION = "1"

TOKENS_AT_ONCE = 512
"""Pairs are run together up to about so many tokens, whose activations at every node are in memory meanwhile."""


@dataclass(frozen=True)
class Estimates:
    """What the gradients say: by task the metric of its two runs, by grid the effects on every pair."""

    tasks: Sequence[Task]
    grids: Sequence[NodeGrid]
    baselines: Sequence[Baselines]
    effects: Sequence[Float64[np.ndarray, "pair ..."]]


def run(method: AttributionPatching, spec: AttributionSpec, context: MethodContext) -> AttributionResult:
    """Estimate every node's effect on every pair; over many pairs, means with standard errors."""
    found = estimated(method, spec, context)
    return AttributionResult(
        attribution=AttributionPatchingOutcome(
            variant=method.variant,
            mode=method.mode,
            nodes=_reported(found, method),
            pairs=tuple(_pair(found, index, method, spec) for index in range(len(found.tasks))),
            check=check(method, found.tasks, found.grids, found.effects, context),
        ),
        warnings=tuple(context.warnings),
        provenance=context.provenance("attribution_patching", VERSION).model_copy(update={"seed": method.check.seed}),
        usage=context.usage(),
    )


def estimated(method: AttributionPatching, spec: AttributionSpec, context: MethodContext) -> Estimates:
    """Every node's effect on every pair, unchecked."""
    pairs = context.inputs.pairs
    grids = node_grids(method, pairs, context.model.facts)
    tasks = []
    for pair in pairs:
        target, source = (pair.corrupted, pair.clean) if method.mode == "denoising" else (pair.clean, pair.corrupted)
        tasks.append(Task(pair, measure(spec.metric, pair, context.inputs), target.ids, source.ids))
    by_pair: list[list[Effects]] = []
    baselines: list[Baselines] = []
    for together in _together(tasks):
        runs = _two_runs(together, grids, method, context)
        by_pair += _estimates(together, runs, grids, method, context)
        baselines += [_baselines(both, method) for both in runs]
    return Estimates(tasks, grids, baselines, [np.stack(of_grid) for of_grid in zip(*by_pair, strict=True)])


def _together(tasks: Sequence[Task]) -> Iterator[Sequence[Task]]:
    """Tasks in their order, as many at once as memory has room for."""
    batch: list[Task] = []
    for task in tasks:
        if batch and sum(len(other.target) for other in (*batch, task)) > TOKENS_AT_ONCE:
            yield batch
            batch = []
        batch.append(task)
    yield batch


def _two_runs(
    tasks: Sequence[Task], grids: Sequence[NodeGrid], method: AttributionPatching, context: MethodContext
) -> list[TwoRuns]:
    """Both runs of every task."""
    at_nodes = [grid.capture(layer) for grid in grids if grid.site in method.gradient_nodes() for layer in grid.layers]
    patterns = [pattern_capture(layer) for layer in grids[0].layers] if method.qk_nodes() else []
    sites = tuple(patterns if method.drops_gradients() else [*at_nodes, *patterns])  # GradDrop has runs of its own
    sources = [Row(task.source, captures=tuple(at_nodes), readout=task.measured.readout) for task in tasks]
    targets = [
        Row(
            task.target,
            captures=(*at_nodes, *patterns),
            readout=task.measured.readout,
            gradients=Gradients(task.measured.objective, sites) if sites else None,
        )
        for task in tasks
    ]
    outcomes = context.run([*sources, *targets])
    return [
        _compared(task, source, target, at_nodes, patterns)
        for task, source, target in zip(tasks, outcomes[: len(tasks)], outcomes[len(tasks) :], strict=True)
    ]


def _compared(
    task: Task, source: Outcome, target: Outcome, at_nodes: list[Capture], patterns: list[Capture]
) -> TwoRuns:
    value = task.measured.value
    return TwoRuns(
        target_metric=finite(value(target.values()), "the metric on the run to be patched"),
        source_metric=finite(value(source.values()), "the metric on the run that activations come from"),
        differences={capture: source.captures[capture] - target.captures[capture] for capture in at_nodes},
        gradients=target.gradients,
        activations={capture: target.captures[capture] for capture in patterns},
    )


def _estimates(
    tasks: Sequence[Task],
    runs: Sequence[TwoRuns],
    grids: Sequence[NodeGrid],
    method: AttributionPatching,
    context: MethodContext,
) -> list[list[Effects]]:
    """By task, the effects of every grid."""
    if method.variant == "atp":
        return [
            [first_order(grid, task, both.differences, both.gradients) for grid in grids]
            for task, both in zip(tasks, runs, strict=True)
        ]
    dropped = grad_dropped(tasks, runs, [grid for grid in grids if grid.site in method.gradient_nodes()], context)
    fixed = through_the_pattern(tasks, runs, [grid for grid in grids if grid.site in method.qk_nodes()], context)
    found = [{**one, **other} for one, other in zip(dropped, fixed, strict=True)]
    return [[of_task[grid.site] for grid in grids] for of_task in found]


def _baselines(both: TwoRuns, method: AttributionPatching) -> Baselines:
    clean, corrupted = both.source_metric, both.target_metric
    if method.mode == "noising":
        clean, corrupted = corrupted, clean
    return Baselines(clean=clean, corrupted=corrupted)


def _reported(found: Estimates, method: AttributionPatching, pairs: slice = slice(None)) -> tuple[NodeEffects, ...]:
    """Every grid's effects over `pairs`."""
    return tuple(
        NodeEffects(
            site=grid.site,
            layers=grid.layers,
            heads=grid.heads,
            positions=grid.labels,
            signed=not (method.drops_gradients() and grid.site in method.gradient_nodes()),
            effects=estimate(effects[pairs], grid.dims),
        )
        for grid, effects in zip(found.grids, found.effects, strict=True)
    )


def _pair(found: Estimates, index: int, method: AttributionPatching, spec: AttributionSpec) -> AttributionPair:
    pair = found.tasks[index].pair
    return AttributionPair(
        tokens=PairTokens(clean=pair.clean, corrupted=pair.corrupted),
        differing_positions=pair.differing,
        baselines=found.baselines[index],
        nodes=_reported(found, method, slice(index, index + 1)) if spec.per_example else None,
    )
