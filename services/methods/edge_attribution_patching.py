"""Edge attribution patching: which edges between heads and MLPs carry what the metric depends on.

1. run the clean and the corrupted prompt: their metrics, and what every writer u (the input, heads, MLPs) puts out;
2. take gradients of the metric at what every reader v reads (heads by q, k and v, MLPs, the logits)
   - `eap` (Syed et al. 2023, arXiv:2310.10348): in the clean run;
   - `eap_ig_inputs` (Hanna et al. 2024, arXiv:2403.17806): in runs whose embeddings lie between the corrupted and the
     clean prompt's, averaged by the quadrature;
   - `eap_ig_activations` (Marks et al. 2024, arXiv:2403.19647): for the edges of u, in clean runs in which the output
     of u's group (the input, one layer's attention, one MLP) lies between the corrupted and the clean run's;
3. score(u→v) = (u_clean − u_corrupted) · gradient at v, summed over positions (`edges` has the arithmetic);
4. means with standard errors over pairs; the edges with the largest |mean|.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np

from services.contracts.attribution import AttributionResult, AttributionSpec
from services.contracts.edge_attribution_patching import (
    EdgeAttributionOutcome,
    EdgeAttributionPatching,
    EdgeCounts,
    EdgePair,
    ScoredEdge,
)
from services.contracts.inputs import TokenizedPair
from services.contracts.model import ModelFacts
from services.contracts.node import Edge
from services.contracts.quadrature import nodes_of
from services.contracts.result import Baselines, PairTokens
from services.contracts.tensor import InlineTensor, ScalarStatistic
from services.engine.outcome import Outcome
from services.engine.row import Gradients, Intervention, Row
from services.methods.context import MethodContext
from services.methods.edges import Captures, Edges, Scores, WeightedRun
from services.methods.graph import Graph, WriterGroup
from services.methods.metric import Measure, finite, measure
from services.methods.statistics import RunningMean

VERSION = "1"

BYTES_AT_ONCE = 192 * 2**20
"""What runs may yield together before it is worked into scores: memory grows neither with the pairs nor the steps."""

DIMS = ("writer", "reader")

Item = TypeVar("Item")


@dataclass(frozen=True)
class Ends:
    """A pair's two runs."""

    pair: TokenizedPair
    measured: Measure
    clean: Captures
    corrupted: Captures
    baselines: Baselines


@dataclass(frozen=True)
class Step:
    """One run with gradients, for the edges of some writers; `weight` is its part in their mean."""

    pair: int
    writers: tuple[WriterGroup, ...]
    row: Row
    weight: float


def run(
    method: EdgeAttributionPatching,
    spec: AttributionSpec,
    context: MethodContext,
    *,
    bytes_at_once: int = BYTES_AT_ONCE,
) -> AttributionResult:
    """Score every edge, in the metric's units: positive where what the clean run passes on raises the metric."""
    facts = context.model.facts
    edges = Edges(Graph.of(facts), context.weights())
    there = edges.graph.edges()
    mean = RunningMean()
    pairs = []
    for ends, scores in _scored(method, spec, edges, context, bytes_at_once):
        scores[~there] = np.nan
        finite(float(scores[there].sum()), "the sum of the edges' scores")
        mean.add(scores)
        pairs.append(_pair(ends, scores, method, own=spec.per_example))
    if facts.post_norms:
        context.warnings.append(
            "this model normalises attention's output before it is added: a head's part of it is taken at each run's "
            "own scale, so what a head does to that scale is not among its edges"
        )
    return AttributionResult(
        attribution=_outcome(method, edges.graph, mean, tuple(pairs)),
        warnings=tuple(context.warnings),
        provenance=context.provenance("edge_attribution_patching", VERSION),
        usage=context.usage(),
    )


def _scored(
    method: EdgeAttributionPatching, spec: AttributionSpec, edges: Edges, context: MethodContext, bytes_at_once: int
) -> Iterator[tuple[Ends, Scores]]:
    """Every pair's two runs and its scores, as many pairs at once as may be."""
    shape = (len(edges.graph.writers), len(edges.graph.readers))
    longest = max(len(pair.clean.ids) for pair in context.inputs.pairs)
    at_once = max(1, bytes_at_once // (longest * _token_bytes(context.model.facts)))
    for number, pairs in enumerate(_by(at_once, context.inputs.pairs)):
        ends = _ends(pairs, method, spec, edges, context, check=number == 0)
        scores = [np.zeros(shape) for _ in ends]
        for steps in _by(at_once, _steps(method, ends, edges)):
            outcomes = context.run([step.row for step in steps])
            for (pair, writers), runs in _by_writers(steps, outcomes).items():
                readers = edges.graph.readers_of(writers[0])
                edges.add(scores[pair], (ends[pair].clean, ends[pair].corrupted), writers, readers, runs)
        yield from zip(ends, scores, strict=True)


def _token_bytes(facts: ModelFacts) -> int:
    """About what a run with gradients yields by token; a pair's two runs yield less."""
    return 4 * facts.layers * (facts.d_head * (facts.heads + 2 * facts.kv_heads) + 3 * facts.d_model)


def _by(count: int, items: Iterable[Item]) -> Iterator[list[Item]]:
    waiting = iter(items)
    while together := list(islice(waiting, count)):
        yield together


def _ends(
    pairs: Sequence[TokenizedPair],
    method: EdgeAttributionPatching,
    spec: AttributionSpec,
    edges: Edges,
    context: MethodContext,
    *,
    check: bool,
) -> list[Ends]:
    """The two runs of every pair; with `check`, the first one also proves that the model can be taken apart."""
    measures = [measure(spec.metric, pair, context.inputs) for pair in pairs]
    captures = edges.taken_at_ends()
    if method.variant == "eap_ig_activations":
        captures += tuple(group.output for group in edges.graph.writer_groups)
    rows = [
        Row(prompt.ids, captures=tuple(dict.fromkeys(captures)), readout=measured.readout)
        for pair, measured in zip(pairs, measures, strict=True)
        for prompt in (pair.clean, pair.corrupted)
    ]
    if check:
        wanted = dict.fromkeys(captures + edges.taken_to_check())
        rows[0] = Row(rows[0].tokens, captures=tuple(wanted), readout=rows[0].readout)
    outcomes = context.run(rows)
    if check:
        edges.check(outcomes[0].captures)
    return [
        Ends(
            pair=pair,
            measured=measured,
            clean=clean.captures,
            corrupted=corrupted.captures,
            baselines=Baselines(
                clean=finite(measured.value(clean.values()), "the metric of the clean run"),
                corrupted=finite(measured.value(corrupted.values()), "the metric of the corrupted run"),
            ),
        )
        for pair, measured, clean, corrupted in zip(pairs, measures, outcomes[::2], outcomes[1::2], strict=True)
    ]


def _steps(method: EdgeAttributionPatching, ends: Sequence[Ends], edges: Edges) -> Iterator[Step]:
    """All runs with gradients, made as they are needed."""
    groups = edges.graph.writer_groups
    for index, end in enumerate(ends):
        if method.variant == "eap":
            yield Step(index, groups, _row(end, edges, groups), 1.0)
            continue
        moved = [(groups[0], groups)] if method.variant == "eap_ig_inputs" else [(group, (group,)) for group in groups]
        for group, writers in moved:
            for alpha, weight in nodes_of(method.quadrature, method.steps):
                between = _between(end, group, alpha)
                yield Step(index, writers, _row(end, edges, writers, between), weight)


def _row(end: Ends, edges: Edges, writers: tuple[WriterGroup, ...], *interventions: Intervention) -> Row:
    captures, gradients = edges.taken_on_the_way(edges.graph.readers_of(writers[0]))
    return Row(
        end.pair.clean.ids,
        interventions,
        captures,
        end.measured.readout,
        Gradients(end.measured.objective, gradients),
    )


def _between(end: Ends, group: WriterGroup, alpha: float) -> Intervention:
    """The output of `group`, a part `alpha` of the way from the corrupted run's to the clean one's."""
    clean, corrupted = end.clean[group.output], end.corrupted[group.output]
    return Intervention(group.output.site, None, "set", corrupted + alpha * (clean - corrupted))


def _by_writers(
    steps: Sequence[Step], outcomes: Sequence[Outcome]
) -> dict[tuple[int, tuple[WriterGroup, ...]], list[WeightedRun]]:
    runs: dict[tuple[int, tuple[WriterGroup, ...]], list[WeightedRun]] = defaultdict(list)
    for step, outcome in zip(steps, outcomes, strict=True):
        runs[step.pair, step.writers].append(WeightedRun(outcome, step.weight))
    return runs


def _pair(ends: Ends, scores: Scores, method: EdgeAttributionPatching, *, own: bool) -> EdgePair:
    moved = ends.baselines.clean - ends.baselines.corrupted
    return EdgePair(
        tokens=PairTokens(clean=ends.pair.clean, corrupted=ends.pair.corrupted),
        differing_positions=ends.pair.differing,
        baselines=ends.baselines,
        completeness_gap=moved - float(np.nansum(scores[0])) if method.variant == "eap_ig_inputs" else None,
        scores=InlineTensor.of(scores, DIMS) if own else None,
    )


def _outcome(
    method: EdgeAttributionPatching, graph: Graph, mean: RunningMean, pairs: tuple[EdgePair, ...]
) -> EdgeAttributionOutcome:
    integrated = method.variant != "eap"
    return EdgeAttributionOutcome(
        variant=method.variant,
        steps=method.steps if integrated else None,
        quadrature=method.quadrature if integrated else None,
        writers=tuple(map(str, graph.writers)),
        readers=tuple(map(str, graph.readers)),
        scores=mean.estimate(DIMS) if method.scores else None,
        edges=_largest(method.top_k, graph, mean),
        edge_counts=EdgeCounts(edges=int(graph.edges().sum()), per_query_head=graph.edges_per_query_head()),
        pairs=pairs,
    )


def _largest(count: int, graph: Graph, mean: RunningMean) -> tuple[ScoredEdge, ...]:
    """The edges of the largest |mean|, largest first."""
    error = mean.standard_error()
    writers, readers = np.nonzero(graph.edges())
    order = np.argsort(-np.abs(mean.mean[writers, readers]), kind="stable")[:count]
    return tuple(
        ScoredEdge(
            edge=str(Edge(graph.writers[writer], graph.readers[reader])),
            score=ScalarStatistic(
                mean=float(mean.mean[writer, reader]),
                standard_error=None if error is None else float(error[writer, reader]),
                count=mean.count,
            ),
        )
        for writer, reader in zip(writers[order], readers[order], strict=True)
    )
