"""What feature attribution costs: the base run and the source run, the ways back, and the exact check.

How many features change, and where, is known only afterwards: the check counts as many as were asked for. By position
it patches as many cells again, of the reported features and of the error; their rows begin where whole features' do.
"""

from collections.abc import Iterable, Sequence

from services.catalogue.costs.cost import FLOAT_BYTES, GRADIENT_PASSES, Cost
from services.catalogue.costs.rows import PlannedRow, Touch, work
from services.contracts.attribution import AttributionSpec
from services.contracts.feature_attribution import FeatureAttribution
from services.contracts.inputs import Inputs, TokenizedExample, TokenizedPair
from services.contracts.metric import KlDivergence
from services.contracts.model import ModelFacts
from services.contracts.sae import SaeFacts
from services.contracts.sweep import index_of

FEATURE_BYTES = 160
"""One attributed feature, or one checked feature or cell, as JSON."""


def feature_attribution_cost(
    method: FeatureAttribution, spec: AttributionSpec, inputs: Inputs, model: ModelFacts, sae: SaeFacts
) -> Cost:
    checked = min(method.check.top_k + method.check.sampled, sae.features)
    items: tuple[TokenizedPair | TokenizedExample, ...] = (*inputs.pairs, *inputs.examples)
    if method.by_position:
        cells = (min(method.top_k, sae.features) + 1) * len(_places(method, items))
        checked += min(method.check.top_k + method.check.sampled, cells)
    passes = 1 if isinstance(spec.metric, KlDivergence) else 0  # the clean run once more, for what it predicts
    first_order = method.estimate == "gradient_x_activation"
    passes += GRADIENT_PASSES if first_order else 1
    total, rows = 0, []
    for item in items:
        prompt = item.prompt if isinstance(item, TokenizedExample) else item.clean
        base = prompt.ids if isinstance(item, TokenizedExample) or method.mode == "noising" else item.corrupted.ids
        whole = len(prompt.ids) * model.layers
        first = _first(method, item)
        steps = 0 if first is None or first_order else method.steps
        total += (passes + method.takes_pairs() + GRADIENT_PASSES * steps) * whole
        if first is not None:
            rows.append(PlannedRow(base, model.layers, reads_at=item.metric_position))
            touches = (Touch(sae.site, sae.layer, first),)
            rows += [PlannedRow(base, model.layers, touches, item.metric_position)] * (checked + 2)
    longest = max(len(item.clean.ids if isinstance(item, TokenizedPair) else item.prompt.ids) for item in items)
    floats = (method.top_k + 1) * len(method.positions or range(longest)) * 2 if method.by_position else 0
    floats += len(items) * method.top_k * spec.per_example
    return Cost(total + work(rows, model.layers), floats * FLOAT_BYTES + (method.top_k + checked) * FEATURE_BYTES)


def _first(method: FeatureAttribution, item: TokenizedPair | TokenizedExample) -> int | None:
    """The first position that changes; None where nothing does."""
    return min(_changing(method, item).values(), default=None)


def _changing(method: FeatureAttribution, item: TokenizedPair | TokenizedExample) -> dict[int, int]:
    """The positions that can change, by their number among the asked ones."""
    length = len(item.prompt.ids if isinstance(item, TokenizedExample) else item.clean.ids)
    asked: Sequence[int]
    if method.positions is None:
        asked = range(length)
    elif isinstance(item, TokenizedExample):
        asked = [int(at) % length for at in method.positions]
    else:
        asked = [index_of(at, item) for at in method.positions]
    first = 0 if isinstance(item, TokenizedExample) else min(item.differing, default=length)
    return {place: at for place, at in enumerate(asked) if at >= first}


def _places(method: FeatureAttribution, items: Iterable[TokenizedPair | TokenizedExample]) -> set[int]:
    """Of the asked positions, those that can change in some input."""
    return {place for item in items for place in _changing(method, item)}
