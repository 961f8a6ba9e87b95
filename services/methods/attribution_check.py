"""Attribution patching against activation patching: some nodes patched exactly, for every result.

1. the nodes with the largest estimates, and a seeded sample of the others, are patched one by one on every pair;
2. the two columns are compared: rank correlation, largest error, and how many sampled nodes matter at all, and more
   than the least of the top (false negatives).

Nodes before the first token that differs have no effect and no estimate: they are not among the candidates.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, Protocol, TypeVar

import numpy as np
from jaxtyping import Float64

from services.contracts.attribution_patching import AttributionCheck, AttributionPatching, CheckedNode, ExactCheck
from services.engine.outcome import Outcome
from services.engine.row import Intervention, Row, Site
from services.methods.attribution_nodes import NodeGrid, Task
from services.methods.context import MethodContext
from services.methods.metric import finite

ROWS_AT_ONCE = 8_192

NEGLIGIBLE = 1e-3
"""Of the largest exact effect: a node with less than that is not missed."""

Column = Float64[np.ndarray, " cell"]


class Estimated(Protocol):
    """Anything with an estimate to be checked."""

    @property
    def estimated(self) -> float: ...


AnyNode = TypeVar("AnyNode", bound=Estimated)


@dataclass(frozen=True)
class _Node:
    """One node, and the mean over pairs of its estimate."""

    grid: NodeGrid
    layer: int
    head: int | None
    label: int | str | None
    estimated: float
    signed: bool

    def row(self, task: Task) -> Row:
        """The target run with this node from the source run."""
        positions = None if self.label is None else task.indices((self.label,))
        patch = Intervention(Site(self.grid.site, self.layer, self.head), positions, "set", task.donor)
        return Row(task.target, (patch,), readout=task.measured.readout)


def check(
    method: AttributionPatching,
    tasks: Sequence[Task],
    grids: Sequence[NodeGrid],
    effects: Sequence[Float64[np.ndarray, "pair ..."]],
    context: MethodContext,
) -> AttributionCheck:
    """Patch some of the nodes exactly; `effects` are every grid's estimates."""
    nodes = [
        node
        for grid, of_grid in zip(grids, effects, strict=True)
        for node in _candidates(grid, of_grid, tasks, signed=not _is_magnitude(grid, method))
    ]
    top, sampled = chosen(nodes, method.check)
    exact = _exact([*top, *sampled], tasks, context)
    estimated = np.array([node.estimated for node in (*top, *sampled)])
    return AttributionCheck(
        rank_correlation=rank_correlation(estimated, exact),
        largest_error=float(np.abs(estimated - exact).max(initial=0.0)),
        false_negatives=false_negatives(exact, len(top)),
        cells=tuple(
            _reported(node, "top" if index < len(top) else "sampled", exact[index])
            for index, node in enumerate((*top, *sampled))
        ),
    )


def false_negatives(exact: Column, top: int) -> int:
    """How many behind the first `top` matter at all, and more than the least of these."""
    least = max(np.abs(exact[:top]).min(initial=np.inf), NEGLIGIBLE * np.abs(exact).max(initial=0.0))
    return int((np.abs(exact[top:]) > least).sum())


def rank_correlation(one: Column, other: Column) -> float | None:
    """Spearman's: the correlation of ranks, equal values sharing theirs; None where one column is constant."""
    if len(one) < 2 or len(set(one)) == 1 or len(set(other)) == 1:
        return None
    return float(np.corrcoef(_ranks(one), _ranks(other))[0, 1])


def _ranks(values: Column) -> Column:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    ranks: Column = (last - (counts - 1) / 2)[places]
    return ranks


def _is_magnitude(grid: NodeGrid, method: AttributionPatching) -> bool:
    return method.drops_gradients() and grid.site in method.gradient_nodes()


def _candidates(
    grid: NodeGrid, effects: Float64[np.ndarray, "pair ..."], tasks: Sequence[Task], *, signed: bool
) -> Iterator[_Node]:
    """The grid's nodes that can have an effect in some pair."""
    means, labels = effects.mean(axis=0), grid.labels or (None,)
    can_differ = [any(_can_differ(label, task) for task in tasks) for label in labels]
    for cell in np.ndindex(means.shape):
        places = dict(zip(grid.dims, cell, strict=True))
        position = places.get("position", 0)
        if can_differ[position]:
            estimated = finite(float(means[cell]), "an estimated effect")
            yield _Node(grid, grid.layers[places["layer"]], places.get("head"), labels[position], estimated, signed)


def _can_differ(label: int | str | None, task: Task) -> bool:
    last = len(task.target) - 1 if label is None else (task.indices((label,)) or (0,))[0]
    return last >= task.first


def chosen(nodes: Sequence[AnyNode], check: ExactCheck) -> tuple[list[AnyNode], list[AnyNode]]:
    """The largest estimates in their order, and a sample of the rest."""
    ranked = sorted(nodes, key=lambda node: -abs(node.estimated))
    top, rest = ranked[: check.top_k], ranked[check.top_k :]
    draw = random.Random(check.seed)  # noqa: S311 - a sample, no secret
    return top, draw.sample(rest, min(check.sampled, len(rest)))


def _exact(nodes: Sequence[_Node], tasks: Sequence[Task], context: MethodContext) -> Column:
    """By node, the mean over pairs of m(patched) − m(unpatched), or of its magnitude."""
    totals = np.zeros(len(nodes))
    at_once = max(1, ROWS_AT_ONCE // (len(nodes) + 1))
    waiting = iter(tasks)
    while together := list(islice(waiting, at_once)):
        rows = [row for task in together for row in _rows(nodes, task)]
        readings = iter(context.run(rows))
        for task in together:
            values = [_metric(task, next(readings)) for _ in range(len(nodes) + 1)]
            effects = np.array(values[1:]) - values[0]
            totals += [effect if node.signed else abs(effect) for node, effect in zip(nodes, effects, strict=True)]
    return totals / len(tasks)


def _metric(task: Task, outcome: Outcome) -> float:
    return finite(task.measured.value(outcome.values()), "the metric of a patched run")


def _rows(nodes: Sequence[_Node], task: Task) -> Iterator[Row]:
    """The unpatched run, then every node's."""
    yield Row(task.target, readout=task.measured.readout)
    for node in nodes:
        yield node.row(task)


def _reported(node: _Node, chosen: Literal["top", "sampled"], exact: float) -> CheckedNode:
    return CheckedNode(
        site=node.grid.site,
        layer=node.layer,
        head=node.head,
        position=node.label,
        chosen=chosen,
        estimated=node.estimated,
        exact=float(exact),
    )
