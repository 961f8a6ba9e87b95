"""What `intervention` costs: an unpatched and a patched run an example, each once per readout."""

from collections.abc import Iterator

from services.catalogue.costs.activations import depth_of, floats_of
from services.catalogue.costs.cost import FLOAT_BYTES, Cost
from services.catalogue.costs.rows import PlannedRow, Tokens, Touch, first_difference, work
from services.contracts.inputs import Inputs, TokenizedExample
from services.contracts.intervention import InterventionSpec
from services.contracts.metric import KlDivergence
from services.contracts.model import ModelFacts
from services.contracts.place import Place

TOKEN_BYTES = 60
"""One token with its logit, as JSON."""


def intervention_cost(spec: InterventionSpec, inputs: Inputs, model: ModelFacts) -> Cost:
    runs = {index: run.ids for (index, _), run in zip(spec.run_values(), inputs.references, strict=True)}
    planned = [row for example in inputs.examples for row in _rows(spec, example, runs, model)]
    needed = list(runs.values())
    if isinstance(spec.metric, KlDivergence):
        needed += [example.prompt.ids for example in inputs.examples]
    floats = sum(
        floats_of(place, len(example.prompt.ids), model) for example in inputs.examples for place in spec.activations
    )
    tokens = 2 * spec.top_k * len(inputs.examples)
    return Cost(work(planned, model.layers, needed), floats * FLOAT_BYTES + tokens * TOKEN_BYTES)


def _rows(
    spec: InterventionSpec, example: TokenizedExample, runs: dict[int, Tokens], model: ModelFacts
) -> Iterator[PlannedRow]:
    tokens = example.prompt.ids
    reads: list[int | None] = []
    if spec.metric is not None:
        reads.append(example.metric_position)
    if spec.top_k:
        reads.append(spec.position % len(tokens))
    changes = tuple(_changes(spec, tokens, runs))
    captures = tuple(_touch(place, tokens) for place in spec.activations)
    for number, at in enumerate(reads):
        yield PlannedRow(tokens, model.layers, reads_at=at)
        yield PlannedRow(tokens, model.layers, changes + (() if number else captures), at)
    if not reads:
        depth = max(depth_of(place) for place in spec.activations)
        yield PlannedRow(tokens, depth, changes + captures)


def _changes(spec: InterventionSpec, tokens: Tokens, runs: dict[int, Tokens]) -> Iterator[Touch]:
    """Where the interventions begin: before another prompt differs, its run's activations are the example's own."""
    for index, intervention in enumerate(spec.interventions):
        site, layer = intervention.located()
        positions = list(intervention.indices(len(tokens)) or range(len(tokens)))
        if index in runs and intervention.operation == "set":
            same = first_difference(tokens, runs[index])
            positions = [position for position in positions if position >= same]
        if positions:
            yield Touch(site, layer, min(positions))


def _touch(place: Place, tokens: Tokens) -> Touch:
    site, layer = place.located()
    return Touch(site, layer, min(place.indices(len(tokens)) or (0,)))
