"""AtP*: attribution patching with its two known blind spots mended (Kramár et al. 2024, arXiv:2403.00745).

A saturated softmax hides queries and keys. So for `q` and `k` (the paper's equations 7 to 10):

1. set the queries (keys) of one layer to the source run's and take the pattern, which costs one layer: queries of all
   positions and heads at once, since each moves its own line of the pattern only; keys of one position at a time;
2. effect = (pattern under the patch − pattern) · ∂m/∂pattern, over the lines that the node moves.

Effects by different ways can cancel. So for all other nodes, GradDrop (equation 11):

3. for each of the L layers, hold what it adds to the residual stream at the run's own values, which keeps the gradient
   from passing it, and estimate every node's effect once more;
4. effect = Σ |estimate| / (L − 1): a magnitude. A node's own layer contributes nothing to the sum; the residual stream
   belongs to no layer, so `resid_pre` has L terms and their mean.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float64

from services.contracts.model import ModelFacts
from services.contracts.site import SiteName
from services.engine.row import Capture, FromRun, Gradients, Intervention, Row, Site
from services.methods.attribution_nodes import Effects, NodeGrid, Task, TwoRuns, at_labels, first_order
from services.methods.context import MethodContext

GRADIENT_TOKENS_AT_ONCE = 512
"""GradDrop's rows run together up to about so many tokens, whose gradients at every node are in memory meanwhile."""

PATTERN_VALUES_AT_ONCE = 2**26
"""Patched patterns are in memory up to about so many numbers at once."""

BySite = dict[SiteName, Effects]
Item = TypeVar("Item")


def pattern_capture(layer: int) -> Capture:
    return Capture(Site(SiteName.PATTERN, layer))


def grad_dropped(
    tasks: Sequence[Task], runs: Sequence[TwoRuns], grids: Sequence[NodeGrid], context: MethodContext
) -> list[BySite]:
    """By task, the effects of `grids` without their signs."""
    if not grids:
        return [{} for _ in tasks]
    layers = context.model.facts.layers
    sums: list[BySite] = [{} for _ in tasks]
    at_once = max(1, GRADIENT_TOKENS_AT_ONCE // max(len(task.target) for task in tasks))
    dropped = ((index, layer) for index in range(len(tasks)) for layer in range(layers))
    for together in _pieces(dropped, at_once):
        rows = [_dropping(layer, tasks[index], grids, context.model.facts) for index, layer in together]
        for (index, layer), outcome in zip(together, context.run(rows), strict=True):
            for grid in grids:
                effects = np.abs(first_order(grid, tasks[index], runs[index].differences, outcome.gradients))
                if grid.site is SiteName.RESID_PRE:
                    effects /= layers
                else:
                    effects[layer] = 0.0
                    effects /= layers - 1
                sums[index][grid.site] = sums[index].get(grid.site, 0.0) + effects
    return sums


def _dropping(layer: int, task: Task, grids: Sequence[NodeGrid], facts: ModelFacts) -> Row:
    """The target run with what `layer` adds to the residual stream held, and the gradient at every node."""
    added = (SiteName.ATTN_OUT, SiteName.MLP_OUT)
    held = tuple(
        Intervention(Site(known.name, layer), None, "set", FromRun(task.target))
        for known in facts.sites
        if known.name in added and known.writable
    )
    sites = tuple(grid.capture(each) for grid in grids for each in grid.layers)
    return Row(task.target, held, (), task.measured.readout, Gradients(task.measured.objective, sites))


@dataclass(frozen=True)
class _Patch:
    """Queries or keys of one layer of one task from the source run; keys at `position`, or at all of them for None."""

    task: int
    grid: NodeGrid
    layer: int
    position: int | None

    def row(self, task: Task) -> Row:
        """Up to the pattern, in the lines that the patch can move."""
        positions = None if self.position is None else (self.position,)
        patch = Intervention(Site(self.grid.site, self.layer), positions, "set", task.donor)
        return Row(task.target, (patch,), (self.pattern(task),))

    def pattern(self, task: Task) -> Capture:
        start = task.first if self.position is None else self.position
        return Capture(Site(SiteName.PATTERN, self.layer), tuple(range(start, len(task.target))))


def through_the_pattern(
    tasks: Sequence[Task], runs: Sequence[TwoRuns], grids: Sequence[NodeGrid], context: MethodContext
) -> list[BySite]:
    """By task, the effects of `q` and `k` by way of the recomputed pattern."""
    longest = max(len(task.target) for task in tasks)
    at_once = max(1, PATTERN_VALUES_AT_ONCE // (context.model.facts.heads * longest**2))
    found: list[BySite] = [
        {grid.site: np.zeros((*map(len, (grid.layers, grid.heads or ())), len(task.target))) for grid in grids}
        for task in tasks
    ]
    for together in _pieces(_patches(tasks, grids), at_once):
        outcomes = context.run([patch.row(tasks[patch.task]) for patch in together])
        for patch, outcome in zip(together, outcomes, strict=True):
            task, both = tasks[patch.task], runs[patch.task]
            (patched,) = outcome.captures.values()
            start, whole = len(task.target) - len(patched), pattern_capture(patch.layer)
            change = patched - both.activations[whole][start:]
            by_query = torch.einsum("qhk,qhk->hq", change, both.gradients[whole][start:]).double().numpy()
            effects = found[patch.task][patch.grid.site][patch.layer]
            if patch.grid.site is SiteName.Q:
                effects[:, start:] = by_query
            else:  # a position's keys move the lines of all later queries; a KV head serves a group of heads
                effects[:, start] = by_query.sum(axis=1).reshape(len(effects), -1).sum(axis=1)
    return [_at_nodes(of_task, grids, task) for of_task, task in zip(found, tasks, strict=True)]


def _patches(tasks: Sequence[Task], grids: Sequence[NodeGrid]) -> Iterator[_Patch]:
    """One row a layer for queries, one a layer and position for keys; none where the two runs are the same."""
    for index, task in enumerate(tasks):
        if task.first == len(task.target):
            continue
        for grid in grids:
            indices = task.indices(grid.labels)
            one_by_one = grid.site is SiteName.K and indices is not None
            chosen = [index for index in sorted(set(indices or ())) if index >= task.first] if one_by_one else [None]
            for layer in grid.layers:
                for position in chosen:
                    yield _Patch(index, grid, layer, position)


def _at_nodes(effects: Mapping[SiteName, Float64[np.ndarray, "..."]], grids: Sequence[NodeGrid], task: Task) -> BySite:
    """Effects at the nodes' positions; keys that were patched all at once stand at the first of them alone."""
    return {grid.site: at_labels(effects[grid.site], task.indices(grid.labels)) for grid in grids}


def _pieces(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    while together := list(islice(items, size)):
        yield together
