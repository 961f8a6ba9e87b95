"""Activations of reference prompts, and what of them takes an ablated activation's place."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from services.contracts.errors import ErrorCode, JobFailed
from services.contracts.result import PromptTokens
from services.contracts.site import SiteName
from services.engine.check import site_shape
from services.engine.row import Capture, Row, Site, Value
from services.methods.context import MethodContext

REFERENCE_BYTES = 64 * 2**20
"""References are run together up to about this many bytes of activations."""

Layers = tuple[int | None, ...]
ByLayer = Mapping[int | None, Float[Tensor, "position ..."]]


def mean_over_positions(
    site: SiteName, layers: Layers, context: MethodContext
) -> dict[int | None, Float[Tensor, "..."]]:
    """The mean activation over all positions of all references, every position counting alike, by layer."""
    tokens = sum(len(reference.ids) for reference in context.inputs.references)
    return _mean(site, layers, context, tokens, over_positions=True)


def mean_by_position(site: SiteName, layers: Layers, context: MethodContext) -> dict[int | None, Tensor]:
    """The mean activation over the references, which are equally long, [position, ...] by layer."""
    return _mean(site, layers, context, len(context.inputs.references), over_positions=False)


def _mean(
    site: SiteName, layers: Layers, context: MethodContext, count: int, *, over_positions: bool
) -> dict[int | None, Tensor]:
    sums: dict[int | None, Tensor] = {}
    for together in groups(context.inputs.references, site, layers, context):
        for activations in load(together, site, layers, context):
            for layer, taken in activations.items():
                more = taken.double().sum(0) if over_positions else taken.double()
                sums[layer] = sums[layer] + more if layer in sums else more
    return {layer: (total / count).float() for layer, total in sums.items()}


def load(
    references: Sequence[PromptTokens], site: SiteName, layers: Layers, context: MethodContext
) -> Iterator[ByLayer]:
    """The activations of all positions of each reference, in order; raises JobFailed when one is not finite."""
    captures = {layer: Capture(Site(site, layer)) for layer in layers}
    rows = [Row(reference.ids, captures=tuple(captures.values())) for reference in references]
    for outcome in context.run(rows):
        taken = {layer: outcome.captures[capture] for layer, capture in captures.items()}
        for layer, activation in taken.items():
            if not bool(torch.isfinite(activation).all()):
                message = f"{site} of layer {layer} overflows on a reference: leave that layer or reference out"
                raise JobFailed(ErrorCode.METHOD_FAILED, message)
        yield taken


def reference_bytes(reference: PromptTokens, site: SiteName, layers: Layers, context: MethodContext) -> int:
    """What the activations of one reference take in memory."""
    shape = site_shape(context.model.facts, Site(site, layers[0]), len(reference.ids))
    return 4 * len(layers) * len(reference.ids) * int(torch.Size(shape).numel())


def groups(
    references: Iterable[PromptTokens], site: SiteName, layers: Layers, context: MethodContext
) -> Iterator[list[PromptTokens]]:
    """Those that are run together."""
    together: list[PromptTokens] = []
    taken = 0
    for reference in references:
        size = reference_bytes(reference, site, layers, context)
        if together and taken + size > REFERENCE_BYTES:
            yield together
            together, taken = [], 0
        together.append(reference)
        taken += size
    if together:
        yield together


@dataclass(frozen=True, eq=False)
class Replacement:
    """What takes an activation's place: by layer, for each position of the prompt, or (without `aligned`) for all."""

    activations: Mapping[int | None, Float[Tensor, "..."]]
    aligned: bool

    def at(self, site: Site, positions: tuple[int, ...] | None) -> Value:
        """The value for a site at these positions; all of the prompt's for None."""
        value = self.activations[site.layer]
        if self.aligned and positions is not None:
            value = value[list(positions)]
        if site.head is None:
            return value
        return value[:, site.head] if self.aligned else value[site.head]


@dataclass(frozen=True)
class Zero:
    """Zero takes every activation's place."""

    def at(self, site: Site, positions: tuple[int, ...] | None) -> Value:
        del site, positions
        return 0.0
