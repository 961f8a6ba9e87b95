"""Everything that a batch does to and takes from its activations, by site and layer.

Whoever drives the model calls `perform` with each activation as it comes up, and gets back what must take its place.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from services.contracts.site import SiteName
from services.engine.base_runs import Runs
from services.engine.check import site_shape
from services.engine.lane import Lane, Place, RunKey
from services.engine.reading import reported
from services.engine.row import Capture, FeatureChange, FromRun, Intervention, Site
from services.engine.site_work import ATTENTION_SITES, Read, SiteWork, Write
from services.models.load import LoadedModel


@dataclass
class _Plan:
    writes: list[Write] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    readers: list[tuple[int, Capture]] = field(default_factory=list)


class Agenda:
    """The work of one batch of lanes, done while the batch runs; `captures` fills up meanwhile, lane by lane."""

    def __init__(self, model: LoadedModel, lanes: Sequence[Lane], runs: Runs) -> None:
        self.captures: list[dict[Capture, Float[Tensor, "_position ..."]]] = [{} for _ in lanes]
        self._model = model
        self._runs = runs
        plans: dict[Place, _Plan] = defaultdict(_Plan)
        for index, lane in enumerate(lanes):
            self._plan(plans, index, lane)
        self._readers = {place: plan.readers for place, plan in plans.items()}
        self._work = {place: SiteWork(place[0], plan.writes, plan.reads) for place, plan in plans.items()}

    def reported_captures(self, lane: int) -> dict[Capture, Float[Tensor, "_position ..."]]:
        """A lane's captures as an outcome carries them."""
        return {capture: reported(taken.detach()) for capture, taken in self.captures[lane].items()}

    def places(self) -> set[Place]:
        """Where there is something to do."""
        return set(self._work)

    def perform(self, place: Place, activation: Float[Tensor, "row ..."]) -> Float[Tensor, "row ..."]:
        """Do the writes of `place`, take its captures, and return the activation that goes on."""
        work = self._work.get(place)
        if work is None:
            return activation
        activation = work.write(activation)
        for (lane, capture), taken in zip(self._readers[place], work.read(activation), strict=True):
            self.captures[lane][capture] = taken
        return activation

    def perform_resid_mid(
        self,
        layer: int,
        resid_pre: Float[Tensor, "row slot d_model"],
        attn_out: Float[Tensor, "row slot d_model"],
    ) -> Float[Tensor, "row slot d_model"]:
        """Do the work of resid_mid = resid_pre + attn_out, and return the attn_out that makes it so."""
        place = (SiteName.RESID_MID, layer)
        if place not in self.places():
            return attn_out
        before = resid_pre + attn_out
        after = self.perform(place, before)
        if after.requires_grad:  # a write of what is there already still ends the gradient's way back
            return after - resid_pre
        return torch.where(after != before, after - resid_pre, attn_out)

    def _plan(self, plans: dict[Place, _Plan], index: int, lane: Lane) -> None:
        for wave, intervention in enumerate(lane.row.interventions):
            site, slots = intervention.site, lane.slots(intervention.positions)
            kept = [place for place, slot in enumerate(slots) if slot >= 0]
            if not kept or lane.joins_after(site):
                continue
            value = self._value(lane, intervention)
            plans[site.name, site.layer].writes.append(
                Write(
                    lane=index,
                    slots=[slots[place] for place in kept],
                    head=site.head,
                    wave=wave,
                    operation=intervention.operation,
                    value=value[kept] if isinstance(value, Tensor) and len(kept) < len(slots) else value,
                )
            )
        for capture in lane.row.captures:
            plan = plans[capture.site.name, capture.site.layer]
            slots = lane.slots(capture.positions)
            plan.reads.append(Read(lane=index, slots=slots, head=capture.site.head, keys=len(lane.row.tokens)))
            plan.readers.append((index, capture))

    def _value(self, lane: Lane, intervention: Intervention) -> Float[Tensor, "position ..."] | float | FeatureChange:
        site, positions = intervention.site, intervention.positions
        count = len(lane.row.tokens) if positions is None else len(positions)
        shape = site_shape(self._model.facts, site, len(lane.row.tokens))
        match intervention.value:
            case FromRun(tokens):
                return self._from_run(RunKey(lane.owner, tokens), site, positions, count)
            case Tensor() as value:
                return value.to(self._model.device, self._model.dtype).expand(count, *shape)
            case FeatureChange() as change:
                return change
            case number if site.name in ATTENTION_SITES:  # not to the keys of longer rows in the batch
                return torch.full((count, *shape), number, device=self._model.device, dtype=self._model.dtype)
            case number:
                return number

    def _from_run(
        self, run: RunKey, site: Site, positions: tuple[int, ...] | None, count: int
    ) -> Float[Tensor, "position ..."]:
        activation = self._runs[run].activation((site.name, site.layer))
        chosen = activation[:count] if positions is None else activation[list(positions)]
        return chosen if site.head is None else chosen[:, site.head]
