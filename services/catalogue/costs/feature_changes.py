"""What patching and ablating features cost: the unpatched runs, the way back of the base run, and a run a feature.

How many features change, and where, is known only afterwards: all that were asked for count, at every position that
can change.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from services.catalogue.costs.cost import FLOAT_BYTES, GRADIENT_PASSES, Cost
from services.catalogue.costs.features import PROMOTED_BYTES
from services.catalogue.costs.rows import PlannedRow, PlannedSweep, Tokens, Touch, work
from services.contracts.ablation import AblationSpec
from services.contracts.feature_ablation import FeatureAblation
from services.contracts.feature_patching import FeaturePatching
from services.contracts.feature_site import FeatureChoice
from services.contracts.inputs import Inputs
from services.contracts.metric import KlDivergence
from services.contracts.model import ModelFacts
from services.contracts.patching import PatchingSpec
from services.contracts.sae import SaeFacts
from services.contracts.site import SiteName
from services.contracts.sweep import index_of

FEATURE_BYTES = 40
"""One chosen feature, as JSON."""


@dataclass(frozen=True)
class _Item:
    """An input: the run that is changed, the one that features come from, and the positions that can change."""

    base: Tokens
    source: Tokens | None
    clean: Tokens
    positions: tuple[int, ...]
    reads_at: int | None


def feature_patching_cost(
    method: FeaturePatching, spec: PatchingSpec, inputs: Inputs, model: ModelFacts, sae: SaeFacts
) -> Cost:
    items = []
    for pair in inputs.pairs:
        ids = (pair.corrupted.ids, pair.clean.ids)
        base, source = ids if method.mode == "denoising" else ids[::-1]
        first = min(pair.differing, default=len(base))
        asked = [index_of(at, pair) for at in method.positions or range(len(base))]
        items.append(_Item(base, source, ids[1], tuple(at for at in asked if at >= first), pair.metric_position))
    divergent, parts = isinstance(spec.metric, KlDivergence), 3
    total = _work(method, items, parts, model, sae, gradients=method.estimates(spec.metric), divergent=divergent)
    axis = len(method.positions or range(len(items[0].base))) if method.by_position else 1
    return Cost(total, _output(method, items, 3, parts, axis, own=spec.per_pair, sae=sae))


def feature_ablation_cost(
    method: FeatureAblation, spec: AblationSpec, inputs: Inputs, model: ModelFacts, sae: SaeFacts
) -> Cost:
    items = []
    for example in inputs.examples:
        ids = example.prompt.ids
        positions = tuple(at % len(ids) for at in method.positions or range(len(ids)))
        items.append(_Item(ids, None, ids, positions, example.metric_position))
    divergent, parts = isinstance(spec.metric, KlDivergence), 1
    total = _work(method, items, parts, model, sae, gradients=method.estimates(spec.metric), divergent=divergent)
    here, depth = Touch(sae.site, sae.layer, 0), sae.layer + (sae.site is not SiteName.RESID_PRE)
    total += work([PlannedRow(reference.ids, depth, (here,)) for reference in inputs.references], model.layers)
    axis = len(method.positions or range(len(items[0].base))) if method.by_position else 1
    return Cost(total, _output(method, items, 2, parts, axis, own=spec.per_example, sae=sae))


def _work(
    method: FeatureChoice,
    items: Sequence[_Item],
    parts: int,
    model: ModelFacts,
    sae: SaeFacts,
    *,
    gradients: bool,
    divergent: bool,
) -> int:
    """Of the unpatched runs, with a way back or not, and of the patched ones."""
    here = Touch(sae.site, sae.layer, 0)
    first = [
        PlannedRow(tokens, model.layers, (here,), item.reads_at)
        for item in items
        for tokens in ([] if gradients else [item.base]) + ([item.source] if item.source is not None else [])
    ]
    total = GRADIENT_PASSES * model.layers * sum(len(item.base) for item in items) if gradients else 0
    cells = _feature_count(method, sae) + parts
    patched = [row for item in items for row in _rows(item, cells, model, sae, by_position=method.by_position)]
    runs = [item.clean for item in items] if divergent else []
    if here.join == model.layers:  # reading there records the unpatched runs that the others are grown on
        return total + work([*first, *patched], model.layers, runs)
    return total + work(first, model.layers, runs) + work(patched, model.layers)


def _rows(
    item: _Item, cells: int, model: ModelFacts, sae: SaeFacts, *, by_position: bool
) -> Iterator[PlannedRow | PlannedSweep]:
    if not item.positions:
        return
    yield PlannedRow(item.base, model.layers, reads_at=item.reads_at)
    starts = Counter(item.positions if by_position else (min(item.positions),))
    yield PlannedSweep(item.base, model.layers, sae.site, (sae.layer,), starts, item.reads_at, cells)


def _feature_count(method: FeatureChoice, sae: SaeFacts) -> int:
    return min(len(method.features) + method.top_features(), sae.features)


def _output(
    method: FeatureChoice, items: Sequence[_Item], tensors: int, parts: int, axis: int, *, own: bool, sae: SaeFacts
) -> int:
    """Exact, (normalized) and estimated effects with their errors, and those of every input if they are wanted."""
    features = _feature_count(method, sae)
    floats = tensors * (1 if len(items) == 1 else 2) * (features + parts) * axis
    floats += 2 * len(items) * features * axis * own
    return floats * FLOAT_BYTES + features * (FEATURE_BYTES + 2 * method.promoted_logits * PROMOTED_BYTES)
