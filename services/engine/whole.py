"""Whole forward passes, batched: the model's own forward drives, hooks do the batch's work.

Rows are padded on the right, which is exact for causal models: no position sees a later one. This way knows nothing of
the family, so it serves those that cannot be driven block by block, and it is what the branched way is checked against.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from services.contracts.site import SiteName
from services.engine.agenda import Agenda, Lane, Place
from services.engine.reading import positions_read
from services.models.hooks import Hook, hook_points, hooked
from services.models.load import LoadedModel

Logits = Mapping[int, Float[Tensor, "position vocabulary"]]
"""By lane: its logits at the positions that its readout reads."""


class _Stop(Exception):
    """Ends a forward pass that has yielded all it was run for."""


class WholePasses:
    """Runs batches of one model as whole forward passes."""

    def __init__(self, model: LoadedModel) -> None:
        self._module = model.bridge.original_model
        self._device = model.device
        self._layers = len(model.bridge.blocks)
        self._points = hook_points(model.bridge)
        self._keeps_logits = "logits_to_keep" in inspect.signature(self._module.forward).parameters

    @torch.no_grad()
    def run(self, lanes: Sequence[Lane], agenda: Agenda) -> Logits:
        """Run `lanes`, whose starts are all 0; captures go to the agenda."""
        read = {
            index: positions_read(lane.row.readout) for index, lane in enumerate(lanes) if lane.row.readout is not None
        }
        kept = sorted({position for positions in read.values() for position in positions})
        try:
            with hooked(self._hooks(agenda, stop=not kept)):
                logits, kept = self._logits(padded([lane.row.tokens for lane in lanes], self._device), kept)
        except _Stop:
            return {}
        place = {position: place for place, position in enumerate(kept)}
        return {index: logits[index, [place[position] for position in positions]] for index, positions in read.items()}

    def _logits(
        self, tokens: Int[Tensor, "row position"], kept: list[int]
    ) -> tuple[Float[Tensor, "row kept vocabulary"], list[int]]:
        if not self._keeps_logits:
            return self._module(tokens, use_cache=False).logits, list(range(tokens.shape[1]))
        where = torch.tensor(kept, device=self._device)
        return self._module(tokens, use_cache=False, logits_to_keep=where).logits, kept

    def _hooks(self, agenda: Agenda, *, stop: bool) -> list[tuple[HookPoint, Hook]]:
        """In the order in which hooks of one point must run: resid_mid's work follows attn_out's."""
        places = agenda.places()
        hooks: list[tuple[HookPoint, Hook]] = [
            (self._points[place], partial(agenda.perform, place)) for place in places if place[0] != SiteName.RESID_MID
        ]
        for site, layer in places:
            if site is SiteName.RESID_MID and layer is not None:
                hooks += self._resid_mid_hooks(agenda, layer)
        if stop:
            hooks.append((self._points[self._end(places)], _stop))
        return hooks

    def _resid_mid_hooks(self, agenda: Agenda, layer: int) -> list[tuple[HookPoint, Hook]]:
        seen: list[Tensor] = []

        def write(attn_out: Tensor) -> Tensor:
            return agenda.perform_resid_mid(layer, seen[-1], attn_out)

        points = self._points
        return [
            (points[SiteName.RESID_PRE, layer], _keeper(seen)),
            (points[SiteName.ATTN_OUT, layer], write),
        ]

    def _end(self, places: set[Place]) -> Place:
        """Behind everything that `places` need."""
        layers = [layer for _, layer in places if layer is not None]
        return (SiteName.RESID_POST, max(layers)) if layers else (SiteName.RESID_PRE, 0)


def padded(rows: Sequence[tuple[int, ...]], device: torch.device) -> Int[Tensor, "row position"]:
    """Rows of tokens as one tensor, padded on the right with a token that nobody looks at."""
    length = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (length - len(row))] for row in rows], device=device)


def _keeper(seen: list[Tensor]) -> Callable[[Tensor], None]:
    def keep(activation: Tensor) -> None:
        seen.append(activation)

    return keep


def _stop(_activation: Tensor) -> None:
    raise _Stop
