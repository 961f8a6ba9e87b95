"""What `ablation` costs: the references' runs, an unpatched run an example, and of each ablated run what it changes."""

from collections import Counter
from collections.abc import Iterator

from services.catalogue.costs.cost import FLOAT_BYTES, Cost
from services.catalogue.costs.feature_changes import feature_ablation_cost
from services.catalogue.costs.rows import PlannedRow, PlannedSweep, Touch, work
from services.contracts.ablation import AblationSpec, ResampleAblation, SweptAblation, ZeroAblation
from services.contracts.feature_ablation import FeatureAblation
from services.contracts.inputs import Inputs, TokenizedExample
from services.contracts.metric import KlDivergence
from services.contracts.model import ModelFacts
from services.contracts.result import PromptTokens
from services.contracts.sae import SaeFacts
from services.contracts.site import SiteName


def ablation_cost(spec: AblationSpec, inputs: Inputs, model: ModelFacts, sae: SaeFacts | None) -> Cost:
    if isinstance(spec.method, FeatureAblation):
        assert sae is not None, "a job that names an SAE is estimated with its facts"
        return feature_ablation_cost(spec.method, spec, inputs, model, sae)
    return _swept_cost(spec.method, spec, inputs, model)


def _swept_cost(method: SweptAblation, spec: AblationSpec, inputs: Inputs, model: ModelFacts) -> Cost:
    rows = [row for example in inputs.examples for row in _rows(method, example, model)]
    divergent = isinstance(spec.metric, KlDivergence)
    runs = [example.prompt.ids for example in inputs.examples] if divergent else []
    token_layers = work(rows, model.layers, runs) + work(_references(method, inputs, model), model.layers)
    cells = len(_layers(method, model)) * _heads(method, model)
    cells *= len(method.swept_positions(len(inputs.examples[0].prompt.ids)) or (None,))
    tensors = (1 if len(inputs.examples) == 1 else 2) + len(inputs.examples) * spec.per_example
    return Cost(token_layers, tensors * cells * FLOAT_BYTES)


def _rows(method: SweptAblation, example: TokenizedExample, model: ModelFacts) -> Iterator[PlannedRow | PlannedSweep]:
    tokens, at = example.prompt.ids, example.metric_position
    yield PlannedRow(tokens, model.layers, reads_at=at)
    samples = method.samples if isinstance(method, ResampleAblation) else 1
    site, starts = SiteName(method.site), Counter(_starts(method, len(tokens)))
    yield PlannedSweep(tokens, model.layers, site, _layers(method, model), starts, at, samples * _heads(method, model))


def _references(method: SweptAblation, inputs: Inputs, model: ModelFacts) -> Iterator[PlannedRow]:
    """Every reference that is needed, as deep as the deepest layer of the sweep."""
    site, layers = SiteName(method.site), _layers(method, model)
    depths = [0 if layer is None else layer if site is SiteName.RESID_PRE else layer + 1 for layer in layers]
    for reference in _drawn(method, inputs):
        yield PlannedRow(reference.ids, max(depths), tuple(Touch(site, layer, 0) for layer in layers))


def _drawn(method: SweptAblation, inputs: Inputs) -> tuple[PromptTokens, ...]:
    match method:
        case ZeroAblation():
            return ()
        case ResampleAblation():
            drawn = {index for draws in method.drawn(len(inputs.examples)) for index in draws}
            return tuple(inputs.references[index] for index in sorted(drawn))
        case _:
            return inputs.references


def _layers(method: SweptAblation, model: ModelFacts) -> tuple[int | None, ...]:
    return method.swept_layers(model) or (None,)


def _heads(method: SweptAblation, model: ModelFacts) -> int:
    return len(method.swept_heads(model) or (None,))


def _starts(method: SweptAblation, length: int) -> tuple[int, ...]:
    """The first position that each cell of a layer and head changes."""
    swept = method.swept_positions(length)
    if swept is not None:
        return tuple(int(position) % length for position in swept)
    return (min((position % length for position in method.positions or ()), default=0),)
