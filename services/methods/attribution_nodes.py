"""What attribution patching knows of its nodes and pairs: which there are, and what two runs of a pair say of them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from services.contracts.attribution_patching import AttributionPatching
from services.contracts.inputs import TokenizedPair
from services.contracts.model import ModelFacts
from services.contracts.place import heads_of
from services.contracts.site import SiteName
from services.contracts.sweep import index_of
from services.engine.row import Capture, FromRun, Site
from services.methods.metric import Measure

Labels = tuple[int | str, ...] | None
"""The positions that are nodes of their own; None where a node is changed at all positions at once."""

Effects = Float64[np.ndarray, "layer *axes"]
"""One pair's effects at one site, by layer, by head where there are heads, by position where there are labels."""


@dataclass(frozen=True)
class NodeGrid:
    """All nodes of one site."""

    site: SiteName
    layers: tuple[int, ...]
    heads: tuple[int, ...] | None
    labels: Labels

    @property
    def dims(self) -> tuple[str, ...]:
        axes = (("layer", self.layers), ("head", self.heads), ("position", self.labels))
        return tuple(name for name, values in axes if values is not None)

    def capture(self, layer: int) -> Capture:
        return Capture(Site(self.site, layer))


@dataclass(frozen=True)
class Task:
    """One pair to be attributed: the run that is patched, the run that activations come from, the metric."""

    pair: TokenizedPair
    measured: Measure
    target: tuple[int, ...]
    source: tuple[int, ...]

    @property
    def first(self) -> int:
        """The first position whose activations can differ between the two runs."""
        return min(self.pair.differing, default=len(self.target))

    @property
    def donor(self) -> FromRun:
        return FromRun(self.source)

    def indices(self, labels: Labels) -> tuple[int, ...] | None:
        return None if labels is None else tuple(index_of(label, self.pair) for label in labels)


@dataclass(frozen=True, eq=False)
class TwoRuns:
    """What a task's two unpatched runs say.

    `differences` are source − target activations, `gradients` the metric's in the target run, and `activations` the
    target run's own, where AtP* needs them; all positions of each.
    """

    target_metric: float
    source_metric: float
    differences: Mapping[Capture, Float[Tensor, "position ..."]]
    gradients: Mapping[Capture, Float[Tensor, "position ..."]]
    activations: Mapping[Capture, Float[Tensor, "position ..."]]


def node_grids(method: AttributionPatching, pairs: tuple[TokenizedPair, ...], facts: ModelFacts) -> list[NodeGrid]:
    """One grid per site, in the order asked for; all of them have the same positions."""
    lengths = {len(pair.clean.ids) for pair in pairs}
    labels: Labels = method.positions
    if labels is None and len(lengths) == 1:
        labels = tuple(range(*lengths))
    grids = []
    for node in method.nodes:
        heads = heads_of(node, facts)
        grids.append(
            NodeGrid(SiteName(node), tuple(range(facts.layers)), tuple(range(heads)) if heads else None, labels)
        )
    return grids


def first_order(
    grid: NodeGrid,
    task: Task,
    differences: Mapping[Capture, Float[Tensor, "position ..."]],
    gradients: Mapping[Capture, Float[Tensor, "position ..."]],
) -> Effects:
    """(a_source − a_target) · ∂m/∂a at every node of `grid`."""
    by_layer = [
        torch.einsum("...d,...d->...", differences[capture], gradients[capture])
        for capture in map(grid.capture, grid.layers)
    ]
    return at_labels(torch.stack(by_layer).movedim(1, -1).double().numpy(), task.indices(grid.labels))


def at_labels(effects: Float64[np.ndarray, "*axes position"], indices: tuple[int, ...] | None) -> Effects:
    """The chosen positions of effects by position; their sum where none are chosen."""
    return effects.sum(axis=-1) if indices is None else effects[..., list(indices)]
