"""Whether branched passes of a model do what whole ones do: some random cells of both, before the first is relied on.

Every writable site is patched at a random layer and position, from another run; the logits must agree.
"""

from collections.abc import Iterator

import torch

from services.contracts.site import SiteName
from services.engine.base_runs import Runs
from services.engine.lane import Lane
from services.engine.needs import needs_of
from services.engine.passes import Passes
from services.engine.planner import grafted
from services.engine.readout import TokenLogits
from services.engine.row import FromRun, Intervention, Row, Site
from services.models.hooks import hook_points
from services.models.load import LoadedModel

_LENGTHS = (6, 4)
_TOLERANCE = 1e-3
"""Relative to the largest logit: far above float order, far below a wrong activation."""


def holds(branched: Passes, whole: Passes, model: LoadedModel) -> bool:
    """Compare the two ways of running `model`; raises UnknownFamily where the branched one gives up."""
    rows = list(_rows(model, torch.Generator().manual_seed(0)))
    lanes = [grafted(Lane(row, owner=""), model.facts.layers) for row in rows]
    plain = [Lane(row, owner="") for row in rows]
    found = branched.run(lanes, _runs(branched, lanes))
    expected = whole.run(plain, _runs(whole, plain))
    return all(
        torch.allclose(ours.values(), theirs.values(), rtol=0, atol=_TOLERANCE * float(theirs.values().abs().max()))
        for ours, theirs in zip(found, expected, strict=True)
    )


def _runs(passes: Passes, lanes: list[Lane]) -> Runs:
    needs = list(needs_of(lanes).items())
    return dict(zip((key for key, _ in needs), passes.record(needs), strict=True))


def _rows(model: LoadedModel, generator: torch.Generator) -> Iterator[Row]:
    """Cells on prompts of two lengths, so that right padding and different starts are tried too."""
    unwritable = {facts.name for facts in model.facts.sites if not facts.writable}
    there = {site for site, _ in hook_points(model.bridge)} | {SiteName.RESID_MID}
    for length in _LENGTHS:
        base, source = torch.randint(model.facts.vocabulary, (2, length), generator=generator).tolist()
        for site in SiteName:
            if site in unwritable or site not in there:
                continue
            layer = None if site is SiteName.EMBED else _random(model.facts.layers, generator)
            patch = Intervention(Site(site, layer), (_random(length, generator),), "set", FromRun(tuple(source)))
            yield Row(tuple(base), (patch,), readout=TokenLogits(length - 1, None))


def _random(below: int, generator: torch.Generator) -> int:
    return int(torch.randint(below, (1,), generator=generator))
