"""What `ablation` costs: the references' runs, an unpatched run an example, and of each ablated run what it changes."""

from collections import Counter
from collections.abc import Iterator

from services.catalogue.costs.cost import FLOAT_BYTES, Cost
from services.catalogue.costs.rows import PlannedRow, PlannedSweep, Touch, work
from services.contracts.ablation import AblationSpec, ResampleAblation, ZeroAblation
from services.contracts.inputs import Inputs, TokenizedExample
from services.contracts.metric import KlDivergence
from services.contracts.model import ModelFacts
from services.contracts.result import PromptTokens
from services.contracts.site import SiteName


def ablation_cost(spec: AblationSpec, inputs: Inputs, model: ModelFacts) -> Cost:
    rows = [row for example in inputs.examples for row in _rows(spec, example, model)]
    divergent = isinstance(spec.metric, KlDivergence)
    runs = [example.prompt.ids for example in inputs.examples] if divergent else []
    token_layers = work(rows, model.layers, runs) + work(_references(spec, inputs, model), model.layers)
    cells = len(_layers(spec, model)) * _heads(spec, model)
    cells *= len(spec.method.swept_positions(len(inputs.examples[0].prompt.ids)) or (None,))
    tensors = (1 if len(inputs.examples) == 1 else 2) + len(inputs.examples) * spec.per_example
    return Cost(token_layers, tensors * cells * FLOAT_BYTES)


def _rows(spec: AblationSpec, example: TokenizedExample, model: ModelFacts) -> Iterator[PlannedRow | PlannedSweep]:
    tokens, at = example.prompt.ids, example.metric_position
    yield PlannedRow(tokens, model.layers, reads_at=at)
    samples = spec.method.samples if isinstance(spec.method, ResampleAblation) else 1
    site, starts = SiteName(spec.method.site), Counter(_starts(spec, len(tokens)))
    yield PlannedSweep(tokens, model.layers, site, _layers(spec, model), starts, at, samples * _heads(spec, model))


def _references(spec: AblationSpec, inputs: Inputs, model: ModelFacts) -> Iterator[PlannedRow]:
    """Every reference that is needed, as deep as the deepest layer of the sweep."""
    site, layers = SiteName(spec.method.site), _layers(spec, model)
    depths = [0 if layer is None else layer if site is SiteName.RESID_PRE else layer + 1 for layer in layers]
    for reference in _drawn(spec, inputs):
        yield PlannedRow(reference.ids, max(depths), tuple(Touch(site, layer, 0) for layer in layers))


def _drawn(spec: AblationSpec, inputs: Inputs) -> tuple[PromptTokens, ...]:
    match spec.method:
        case ZeroAblation():
            return ()
        case ResampleAblation():
            drawn = {index for draws in spec.method.drawn(len(inputs.examples)) for index in draws}
            return tuple(inputs.references[index] for index in sorted(drawn))
        case _:
            return inputs.references


def _layers(spec: AblationSpec, model: ModelFacts) -> tuple[int | None, ...]:
    return spec.method.swept_layers(model) or (None,)


def _heads(spec: AblationSpec, model: ModelFacts) -> int:
    return len(spec.method.swept_heads(model) or (None,))


def _starts(spec: AblationSpec, length: int) -> tuple[int, ...]:
    """The first position that each cell of a layer and head changes."""
    method = spec.method
    swept = method.swept_positions(length)
    if swept is not None:
        return tuple(int(position) % length for position in swept)
    return (min((position % length for position in method.positions or ()), default=0),)
