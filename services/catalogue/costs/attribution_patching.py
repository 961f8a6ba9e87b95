"""What attribution patching costs: two runs a pair and one way back, AtP*'s further runs, and the exact check.

Which nodes are checked is known only afterwards, so a checked node counts as the mean of all.
"""

from services.catalogue.costs.cost import FLOAT_BYTES, GRADIENT_PASSES, Cost
from services.contracts.attribution import AttributionSpec
from services.contracts.attribution_patching import AttributionPatching
from services.contracts.inputs import Inputs, TokenizedPair
from services.contracts.metric import KlDivergence
from services.contracts.model import ModelFacts
from services.contracts.place import heads_of
from services.contracts.sweep import index_of

CHECKED_NODE_BYTES = 160
"""One checked node, as JSON."""


def attribution_patching_cost(
    method: AttributionPatching, spec: AttributionSpec, inputs: Inputs, model: ModelFacts
) -> Cost:
    lengths = {len(pair.clean.ids) for pair in inputs.pairs}
    by_position = method.positions is not None or len(lengths) == 1
    checked = _checked(method, inputs.pairs, model, by_position=by_position)
    work = sum(_pair(method, pair, model, checked, by_position=by_position) for pair in inputs.pairs)
    if isinstance(spec.metric, KlDivergence):  # the clean run once more, for what it predicts
        work += sum(len(pair.clean.ids) for pair in inputs.pairs) * model.layers
    positions = len(method.positions or range(max(lengths))) if by_position else 1
    cells = sum(model.layers * (heads_of(node, model) or 1) * positions for node in method.nodes)
    statistics = 1 if len(inputs.pairs) == 1 else 2
    tensors = statistics + len(inputs.pairs) * spec.per_example
    return Cost(round(work), tensors * cells * FLOAT_BYTES + checked * CHECKED_NODE_BYTES)


def _pair(
    method: AttributionPatching, pair: TokenizedPair, model: ModelFacts, checked: int, *, by_position: bool
) -> float:
    whole = len(pair.clean.ids) * model.layers
    needs_gradients = bool(method.qk_nodes()) or not method.drops_gradients()
    work = float(whole + (GRADIENT_PASSES if needs_gradients else 1) * whole)
    if method.drops_gradients():
        work += whole + model.layers * GRADIENT_PASSES * whole
    work += _through_the_pattern(method, pair, model, by_position=by_position)
    known = bool(method.qk_nodes())
    return work + _check(method, pair, model, checked, known=known, by_position=by_position)


def _through_the_pattern(
    method: AttributionPatching, pair: TokenizedPair, model: ModelFacts, *, by_position: bool
) -> int:
    """One layer from the patched position on: for queries once a layer, for keys once a layer and position."""
    length = len(pair.clean.ids)
    first = min(pair.differing, default=length)
    if not method.qk_nodes() or first == length:
        return 0
    rows = length - first if "q" in method.nodes else 0
    if "k" in method.nodes and by_position:
        rows += sum(length - index for index in set(_indices(method, pair)) if index >= first)
    elif "k" in method.nodes:
        rows += length - first
    return model.layers * (2 * length + rows)


def _check(
    method: AttributionPatching,
    pair: TokenizedPair,
    model: ModelFacts,
    checked: int,
    *,
    known: bool,
    by_position: bool,
) -> float:
    """Two unpatched runs unless they are `known` already, and of each patched run the part that its patch changes."""
    length = len(pair.clean.ids)
    first = min(pair.differing, default=length)
    if not checked or first == length:
        return 1.0 + checked
    starts = [index for index in _indices(method, pair) if index >= first] if by_position else [first]
    depth = (model.layers + 1) / 2
    reach = sum(length - start for start in starts) / max(1, len(starts))
    unpatched = 0 if known and not method.gradient_nodes() else 1 if known else 2
    return unpatched * length * model.layers + 1 + checked * depth * reach


def _checked(
    method: AttributionPatching, pairs: tuple[TokenizedPair, ...], model: ModelFacts, *, by_position: bool
) -> int:
    """How many nodes are patched exactly: those asked for, or all that can have an effect where these are fewer."""
    moved = [pair for pair in pairs if pair.differing]
    if by_position:
        positions = len(
            {
                place
                for pair in moved
                for place, index in enumerate(_indices(method, pair))
                if index >= min(pair.differing)
            }
        )
    else:
        positions = int(bool(moved))
    nodes = sum(model.layers * (heads_of(node, model) or 1) * positions for node in method.nodes)
    return min(method.check.top_k + method.check.sampled, nodes)


def _indices(method: AttributionPatching, pair: TokenizedPair) -> list[int]:
    """The nodes' positions."""
    if method.positions is None:
        return list(range(len(pair.clean.ids)))
    return [index_of(position, pair) for position in method.positions]
