"""Every site of every family, patched by the engine and by one plain forward pass per cell."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from services.contracts.site import HEAD_SITES, SiteName
from services.engine.check import InvalidRow
from services.engine.engine import Engine
from services.engine.readout import TokenLogits
from services.engine.row import Capture, FromRun, Intervention, Row, Site
from services.engine.ticket import JobTicket
from services.models.load import LoadedModel
from tests.families import FAMILIES, NATIVES
from tests.services.engine.conftest import LoadTiny, Plain

BASE = (17, 41, 5, 230, 99, 8, 120, 77, 301, 64)
SOURCE = (17, 52, 5, 230, 98, 8, 121, 77, 300, 64)
LAST = len(BASE) - 1
Cell = tuple[Site, int | None]

UNWRITABLE = {
    "gptj": {SiteName.RESID_MID, SiteName.ATTN_SCORES, SiteName.PATTERN},
    "gpt_neox": {SiteName.RESID_MID},
    "phi": {SiteName.RESID_MID},
    "native_attention": {
        *(SiteName.RESID_MID, SiteName.MLP_OUT, SiteName.MLP_POST),
        *(SiteName.ATTN_SCORES, SiteName.PATTERN),
    },
    "native_rotary": {SiteName.ATTN_SCORES, SiteName.PATTERN},
    "opt": {SiteName.ATTN_SCORES, SiteName.PATTERN},
}


def cells(model: LoadedModel) -> list[Cell]:
    """All positions and single ones, whole layers and single heads, of every site that can be written."""
    found: list[Cell] = []
    for facts in model.facts.sites:
        if not facts.writable:
            continue
        layers = [None] if facts.name is SiteName.EMBED else range(model.facts.layers)
        for layer in layers:
            found += [(Site(facts.name, layer), position) for position in (None, 0, 4, LAST)]
            if facts.name in HEAD_SITES:
                found += [(Site(facts.name, layer, head=1), position) for position in (None, 4)]
    return found


def patch(cell: Cell, donor: Tensor) -> Callable[[Tensor], Tensor]:
    site, position = cell

    def change(activation: Tensor) -> Tensor:
        where = slice(None) if position is None else slice(position, position + 1)
        if site.head is None:
            activation[where] = donor[where]
        else:
            activation[where, site.head] = donor[where, site.head]
        return activation

    return change


def row(cell: Cell) -> Row:
    site, position = cell
    positions = None if position is None else (position,)
    return Row(BASE, (Intervention(site, positions, "set", FromRun(SOURCE)),), readout=TokenLogits(LAST, None))


def brute_force(plain: Plain, cell: Cell) -> Tensor:
    site, _ = cell
    donor = plain.activation(SOURCE, site.name, site.layer)
    return plain.logits(BASE, (site.name, site.layer, patch(cell, donor)))[LAST]


@pytest.mark.parametrize("family", [*FAMILIES, *NATIVES])
def test_a_patch_at_any_site_does_what_a_plain_forward_pass_does(
    family: str, load_tiny: LoadTiny, engine: Engine, job: JobTicket
) -> None:
    exact, served = load_tiny(family, torch.float64), load_tiny(family, torch.float32)
    plain = Plain(exact)
    swept = cells(exact)
    rows = [row(cell) for cell in swept]
    found, found_in_float32 = engine.run(exact, rows, job=job), engine.run(served, rows, job=job)
    for cell, in_double, in_single in zip(swept, found, found_in_float32, strict=True):
        expected = brute_force(plain, cell)
        torch.testing.assert_close(in_double.values().double(), expected, rtol=0, atol=3e-6, msg=f"{family} {cell}")
        torch.testing.assert_close(in_single.values().double(), expected, rtol=0, atol=1e-4, msg=f"{family} {cell}")


@pytest.mark.parametrize("family", [*FAMILIES, *NATIVES])
def test_every_patch_of_a_writable_site_changes_the_logits(
    family: str, load_tiny: LoadTiny, engine: Engine, job: JobTicket
) -> None:
    model = load_tiny(family, torch.float64)
    swept = [(site, position) for site, position in cells(model) if position is None and site.head is None]
    unpatched, *patched = engine.run(
        model, [Row(BASE, readout=TokenLogits(LAST, None)), *(row(cell) for cell in swept)], job=job
    )
    for cell, outcome in zip(swept, patched, strict=True):
        assert not torch.allclose(outcome.values(), unpatched.values(), atol=1e-4), cell


@pytest.mark.parametrize("family", [*FAMILIES, *NATIVES])
def test_captures_are_what_a_plain_forward_pass_shows(
    family: str, load_tiny: LoadTiny, engine: Engine, job: JobTicket
) -> None:
    model = load_tiny(family, torch.float64)
    plain = Plain(model)
    sites = [
        Site(facts.name, None if facts.name is SiteName.EMBED else layer)
        for facts in model.facts.sites
        if facts.readable
        for layer in range(1 if facts.name is SiteName.EMBED else model.facts.layers)
    ]
    captures = tuple(Capture(site, positions) for site in sites for positions in (None, (7, 2)))
    (outcome,) = engine.run(model, [Row(BASE, captures=captures)], job=job)
    for capture in captures:
        expected = plain.activation(BASE, capture.site.name, capture.site.layer)
        if capture.positions is not None:
            expected = expected[list(capture.positions)]
        if capture.site.name is SiteName.ATTN_SCORES:
            expected = expected.masked_fill(expected < -1e30, -torch.inf)
        torch.testing.assert_close(outcome.captures[capture], expected.float(), rtol=0, atol=3e-6, msg=str(capture))


@pytest.mark.parametrize("family", [*FAMILIES, *NATIVES])
def test_a_site_that_ignores_writes_is_refused(
    family: str, load_tiny: LoadTiny, engine: Engine, job: JobTicket
) -> None:
    model = load_tiny(family, torch.float32)
    unwritable = {facts.name for facts in model.facts.sites if not facts.writable}
    assert unwritable == UNWRITABLE.get(family, set())
    for site in unwritable:
        with pytest.raises(InvalidRow, match=f"{site} of tiny-.* cannot be written"):
            engine.submit(model, [row((Site(site, 1), None))], job=job)
