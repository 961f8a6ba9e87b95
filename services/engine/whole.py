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
from services.engine.agenda import Agenda
from services.engine.base_runs import BaseRun, Runs, Stem
from services.engine.giving_up import give_up_between_blocks
from services.engine.lane import Lane, Place, RunKey, padded
from services.engine.needs import RunNeeds
from services.engine.outcome import Execution, Outcome
from services.engine.passes import activations_of, captures_of, reference_of
from services.engine.reading import positions_read, read_logits
from services.engine.readout import Loss
from services.engine.row import Capture, Row, Site
from services.models.hooks import Hook, hook_points, hooked
from services.models.load import LoadedModel

Logits = Mapping[int, Float[Tensor, "position vocabulary"]]
"""By lane: its logits at the positions that its readout reads."""


class _Stop(Exception):
    """Ends a forward pass that has yielded all it was run for."""


class WholePasses:
    """Runs batches of one model as whole forward passes."""

    execution: Execution = "whole"

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._module = model.bridge.original_model
        self._points = hook_points(model.bridge)
        self._keeps_logits = "logits_to_keep" in inspect.signature(self._module.forward).parameters

    @torch.no_grad()
    def run(self, lanes: Sequence[Lane], runs: Runs) -> list[Outcome]:
        agenda = Agenda(self._model, lanes, runs)
        logits = self.logits(lanes, agenda)
        return [
            Outcome(
                reading=None
                if lane.row.readout is None
                else read_logits(lane.row.readout, logits[index], reference_of(lane, runs)),
                captures=agenda.reported_captures(index),
                execution=self.execution,
            )
            for index, lane in enumerate(lanes)
        ]

    @torch.no_grad()
    def record(self, batch: Sequence[tuple[RunKey, RunNeeds]]) -> list[BaseRun]:
        return [self._recorded(key, needs) for key, needs in batch]

    def _recorded(self, key: RunKey, needs: RunNeeds) -> BaseRun:
        """One run, all logits read: this way is the slow one anyway."""
        layers = self._model.facts.layers
        stream = [Capture(Site(SiteName.RESID_PRE, layer)) for layer in range(layers)]
        stream.append(Capture(Site(SiteName.RESID_POST, layers - 1)))
        captures = (*captures_of(needs), *(stream if needs.stem else ()))
        lane = Lane(Row(key.tokens, captures=captures, readout=Loss(key.tokens)), key.owner)
        agenda = Agenda(self._model, [lane], {})
        log_probs = self.logits([lane], agenda)[0].log_softmax(-1)
        taken = agenda.captures[0]
        return BaseRun(
            stem=Stem([taken[capture] for capture in stream], [], []) if needs.stem else None,
            activations=activations_of({capture: taken[capture] for capture in captures_of(needs)}),
            log_probs={position: log_probs[position] for position in needs.positions},
        )

    def logits(self, lanes: Sequence[Lane], agenda: Agenda) -> Logits:
        """Run `lanes`, whose starts are all 0; captures go to the agenda. Differentiable unless called without grad."""
        read = {
            index: positions_read(lane.row.readout) for index, lane in enumerate(lanes) if lane.row.readout is not None
        }
        kept = sorted({position for positions in read.values() for position in positions})
        try:
            with hooked(self._hooks(agenda, stop=not kept), differentiable=torch.is_grad_enabled()):
                logits, kept = self._forward(padded([lane.row.tokens for lane in lanes], self._model.device), kept)
        except _Stop:
            return {}
        place = {position: place for place, position in enumerate(kept)}
        return {index: logits[index, [place[position] for position in positions]] for index, positions in read.items()}

    def _forward(
        self, tokens: Int[Tensor, "row position"], kept: list[int]
    ) -> tuple[Float[Tensor, "row kept vocabulary"], list[int]]:
        if not self._keeps_logits:
            return self._module(tokens, use_cache=False).logits, list(range(tokens.shape[1]))
        where = torch.tensor(kept, device=self._model.device)
        return self._module(tokens, use_cache=False, logits_to_keep=where).logits, kept

    def _hooks(self, agenda: Agenda, *, stop: bool) -> list[tuple[HookPoint, Hook]]:
        """In the order in which hooks of one point must run: resid_mid's work follows attn_out's."""
        places = agenda.places()
        hooks: list[tuple[HookPoint, Hook]] = [
            (point, give_up_between_blocks) for (site, _), point in self._points.items() if site is SiteName.RESID_PRE
        ]
        hooks += [
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


def _keeper(seen: list[Tensor]) -> Callable[[Tensor], None]:
    def keep(activation: Tensor) -> None:
        seen.append(activation)

    return keep


def _stop(_activation: Tensor) -> None:
    raise _Stop
