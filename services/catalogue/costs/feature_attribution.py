"""What feature attribution costs: the base run and the source run, the ways back, and the exact check.

How many features change is known only afterwards: the check counts as many as were asked for.
"""

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
"""One attributed or checked feature, as JSON."""


def feature_attribution_cost(
    method: FeatureAttribution, spec: AttributionSpec, inputs: Inputs, model: ModelFacts, sae: SaeFacts
) -> Cost:
    checked = min(method.check.top_k + method.check.sampled, sae.features)
    items: tuple[TokenizedPair | TokenizedExample, ...] = (*inputs.pairs, *inputs.examples)
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
    if isinstance(item, TokenizedExample):
        length = len(item.prompt.ids)
        return min((int(position) % length for position in method.positions or ()), default=0)
    if not item.differing:
        return None
    first = min(item.differing)
    chosen = range(len(item.clean.ids)) if method.positions is None else [index_of(at, item) for at in method.positions]
    return min((at for at in chosen if at >= first), default=None)
