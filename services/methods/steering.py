"""Steering as the engine does it: what a specification's items are at each strength.

1. where an amount is in mean norms, or an SAE leaves tokens alone, run the prompts once and look at the sites;
2. amount at strength 1: the item's value, or value × mean norm / length of its direction;
3. at strength s add s·amount, or clamp to it; ablations and projections are the same at every strength. A direction is
   clamped by projecting it out and adding s·amount of it, made one long.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from services.contracts.errors import ErrorCode, JobFailed
from services.contracts.generation import GenerationSpec
from services.contracts.site import SiteName
from services.contracts.steering import (
    MAX_LENGTH,
    AppliedSteering,
    DirectionSteering,
    FeatureSteering,
    HeadSteering,
    Steering,
)
from services.engine.decoding import Onward
from services.engine.row import Capture, FeatureChange, Row, Site
from services.methods.context import MethodContext
from services.saes.sae import Sae


@dataclass(frozen=True, eq=False)
class Steered:
    """How a job steers. `over_norm`: by prompt, the positions that the SAE leaves alone in the unsteered run."""

    items: tuple[Steering, ...]
    applied: tuple[AppliedSteering, ...]
    over_norm: tuple[tuple[int, ...], ...]
    sae: Sae | None
    dtype: torch.dtype

    def at(self, strength: float, first: int) -> tuple[Onward, ...]:
        """What changes from position `first` on, in the order of the items; features where the first of them stands."""
        return tuple(self._changes(strength, first))

    def _changes(self, strength: float, first: int) -> Iterator[Onward]:
        changed_features = False
        for item, applied in zip(self.items, self.applied, strict=True):
            site = Site(applied.site, applied.layer, applied.head)
            match item:
                case HeadSteering():
                    yield Onward(site, first, "set", 0.0)
                case DirectionSteering(operation="project_out"):
                    yield Onward(site, first, "project_out", torch.tensor(item.values))
                case DirectionSteering():
                    along = torch.tensor(item.values, dtype=torch.float64)
                    if item.operation == "clamp":
                        along /= item.length
                        yield Onward(site, first, "project_out", along.float())
                    added = strength * _known(applied.amount) * along
                    self._refuse_too_long(strength, float(added.norm()))
                    yield Onward(site, first, "add", added.float())
                case FeatureSteering() if not changed_features:
                    changed_features = True
                    yield Onward(site, first, "change_features", self._feature_change(strength))

    def _feature_change(self, strength: float) -> FeatureChange:
        assert self.sae is not None
        added: list[tuple[int, float]] = []
        clamped: list[tuple[int, float]] = []
        projected_out: list[int] = []
        for item, applied in zip(self.items, self.applied, strict=True):
            if not isinstance(item, FeatureSteering):
                continue
            if item.operation == "project_out":
                _length(item, self.sae)
                projected_out.append(item.index)
                continue
            amount = strength * applied.amount if applied.amount is not None else 0.0
            self._refuse_too_long(strength, abs(amount) * float(self.sae.W_dec[item.index].norm()))
            (added if item.operation == "add" else clamped).append((item.index, amount))
        return FeatureChange(self.sae, tuple(added), tuple(clamped), tuple(projected_out))

    def _refuse_too_long(self, strength: float, length: float) -> None:
        if not length <= min(MAX_LENGTH, torch.finfo(self.dtype).max):
            message = f"at strength {strength:g} a vector of length {length:g} is added, which overflows: steer less"
            raise JobFailed(ErrorCode.METHOD_FAILED, message)


def steered(spec: GenerationSpec, context: MethodContext) -> Steered:
    """The items of `spec` with their amounts; runs the prompts once where that takes a look at them."""
    sae = context.sae.sae if context.sae is not None else None
    sites = {index: _site(item, context) for index, item in enumerate(spec.steering)}
    looked_at = {
        site
        for index, site in sites.items()
        if isinstance(spec.steering[index], FeatureSteering)
        or (spec.unit == "mean_norm" and spec.steering[index].scaled)
    }
    activations = _look(looked_at, context)
    applied = tuple(_applied(spec, item, sites[index], activations, sae) for index, item in enumerate(spec.steering))
    over_norm: list[tuple[int, ...]] = [() for _ in context.inputs.prompts]
    feature_site = next((sites[index] for index, _ in spec.features()), None)
    if sae is not None and feature_site is not None:
        over_norm = [
            tuple(position for position, within in enumerate(sae.within_norm(x).tolist()) if not within)
            for x in activations[feature_site]
        ]
    return Steered(spec.steering, applied, tuple(over_norm), sae, context.model.dtype)


Activations = Mapping[Site, list[Float[Tensor, "position d_model"]]]


def _look(sites: set[Site], context: MethodContext) -> Activations:
    """The unsteered activations of every prompt at `sites`."""
    if not sites:
        return {}
    captures = {site: Capture(site) for site in sorted(sites, key=lambda site: (str(site.name), site.layer or 0))}
    outcomes = context.run([Row(prompt.ids, captures=tuple(captures.values())) for prompt in context.inputs.prompts])
    return {site: [outcome.captures[capture].flatten(1) for outcome in outcomes] for site, capture in captures.items()}


def _applied(
    spec: GenerationSpec, item: Steering, site: Site, activations: Activations, sae: Sae | None
) -> AppliedSteering:
    assert site.layer is not None
    amount = mean_norm = None
    if not isinstance(item, HeadSteering) and item.scaled:
        amount = 1.0 if item.value is None else item.value
        if spec.unit == "mean_norm":
            mean_norm = _mean_norm(activations[site], sae if isinstance(item, FeatureSteering) else None)
            amount *= mean_norm / _length(item, sae)
    return AppliedSteering(
        type=item.type,
        site=site.name,
        layer=site.layer,
        index=item.index if isinstance(item, FeatureSteering) else None,
        head=site.head,
        operation=item.operation,
        amount=amount,
        mean_norm=mean_norm,
    )


def _length(item: FeatureSteering | DirectionSteering, sae: Sae | None) -> float:
    """Of the vector that an amount of 1 stands for."""
    if isinstance(item, DirectionSteering):
        return item.length_per_amount
    assert sae is not None
    length = float(sae.W_dec[item.index].double().norm())
    if length == 0:
        message = f"feature {item.index} writes nothing: its decoder row is 0, and no multiple of it has a length"
        raise JobFailed(ErrorCode.METHOD_FAILED, message)
    return length


def _mean_norm(activations: list[Float[Tensor, "position d_model"]], sae: Sae | None) -> float:
    """Over all prompts, without position 0 and without what the SAE leaves alone."""
    counted = torch.cat([x[1:] for x in activations])
    if sae is not None:
        counted = counted[sae.within_norm(counted)]
    mean = float(counted.double().norm(dim=-1).mean()) if len(counted) else math.nan
    if not math.isfinite(mean):
        message = "no token of these prompts is within the SAE's norm threshold, so there is no mean norm: set `unit`"
        raise JobFailed(ErrorCode.METHOD_FAILED, message)
    return mean


def _site(item: Steering, context: MethodContext) -> Site:
    match item:
        case FeatureSteering():
            assert context.sae is not None, "the worker loads the SAE that the specification names"
            return Site(context.sae.facts.site, context.sae.facts.layer)
        case DirectionSteering():
            return Site(SiteName(item.site), item.layer)
        case HeadSteering():
            return Site(SiteName.Z, item.layer, item.head)


def _known(amount: float | None) -> float:
    assert amount is not None, "what is added has an amount"
    return amount
