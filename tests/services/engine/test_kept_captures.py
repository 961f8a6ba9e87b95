"""Activations that were read before are not computed again, by owner, within their bytes, and equal to fresh ones."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from services.contracts.site import SiteName
from services.engine.engine import Engine, EngineLimits
from services.engine.kept_captures import KeptCaptures
from services.engine.lane import Lane
from services.engine.outcome import Outcome
from services.engine.readout import TokenLogits
from services.engine.row import Capture, Intervention, Row, Site
from services.engine.ticket import JobTicket
from services.models.load import LoadedModel
from tests.services.engine.conftest import LoadTiny

HERE = Capture(Site(SiteName.RESID_POST, 1))
TOKENS = (3, 5, 7, 11)


@pytest.fixture(scope="module")
def llama(load_tiny: LoadTiny) -> LoadedModel:
    return load_tiny("llama", torch.float32)


@pytest.fixture
def fresh() -> Iterator[Engine]:
    with Engine(EngineLimits(threads=1)) as engine:
        yield engine


def ask(engine: Engine, model: LoadedModel, row: Row, owner: str = "ada") -> tuple[Outcome, float]:
    ticket = JobTicket("job", owner=owner)
    (outcome,) = engine.run(model, [row], job=ticket)
    return outcome, ticket.token_layers


def test_the_second_to_ask_pays_nothing_and_reads_the_same(fresh: Engine, llama: LoadedModel) -> None:
    row = Row(TOKENS, captures=(HERE,))
    first, paid = ask(fresh, llama, row)
    again, nothing = ask(fresh, llama, row)
    assert (paid, nothing) == (len(TOKENS) * 2, 0)
    assert torch.equal(first.captures[HERE], again.captures[HERE])
    assert fresh.statistics().tokens == len(TOKENS)


def test_what_one_owner_read_another_computes(fresh: Engine, llama: LoadedModel) -> None:
    row = Row(TOKENS, captures=(HERE,))
    ask(fresh, llama, row)
    _, paid = ask(fresh, llama, row, owner="bob")
    assert paid == len(TOKENS) * 2


def test_a_model_loaded_again_is_known_and_one_of_another_dtype_is_not(
    fresh: Engine, llama: LoadedModel, load_tiny: LoadTiny
) -> None:
    row = Row(TOKENS, captures=(HERE,))
    first, _ = ask(fresh, llama, row)
    again, nothing = ask(fresh, replace(llama, attachments={}), row)
    _, paid = ask(fresh, load_tiny("llama", torch.float64), row)
    assert (nothing, paid) == (0, len(TOKENS) * 2)
    assert torch.equal(again.captures[HERE], first.captures[HERE])


def test_whoever_writes_on_what_was_read_changes_no_one_elses(fresh: Engine, llama: LoadedModel) -> None:
    row = Row(TOKENS, captures=(HERE,))
    first, _ = ask(fresh, llama, row)
    kept = first.captures[HERE].clone()
    first.captures[HERE].zero_()
    second, _ = ask(fresh, llama, row)
    second.captures[HERE].zero_()
    third, _ = ask(fresh, llama, row)
    assert torch.equal(third.captures[HERE], kept)


def test_in_a_batch_of_known_and_unknown_rows_everyone_gets_their_own(fresh: Engine, llama: LoadedModel) -> None:
    rows = [Row((index, 4, 6, 8), captures=(HERE,)) for index in range(6)]
    alone = [ask(fresh, llama, row, owner="alone")[0].captures[HERE] for row in rows]
    for row in rows[::2]:
        ask(fresh, llama, row)
    ticket = JobTicket("job", owner="ada")
    outcomes = fresh.run(llama, rows, job=ticket)
    assert ticket.token_layers == 3 * 4 * 2
    for outcome, expected in zip(outcomes, alone, strict=True):
        torch.testing.assert_close(outcome.captures[HERE], expected, rtol=0, atol=1e-5)


OTHERS = {
    "another site": Row(TOKENS, captures=(Capture(Site(SiteName.RESID_POST, 0)),)),
    "some positions": Row(TOKENS, captures=(Capture(HERE.site, (2,)),)),
    "two sites": Row(TOKENS, captures=(HERE, Capture(Site(SiteName.RESID_POST, 0)))),
    "a change": Row(TOKENS, (Intervention(Site(SiteName.RESID_POST, 0), (1,), "set", 0.0),), captures=(HERE,)),
    "a readout": Row(TOKENS, captures=(HERE,), readout=TokenLogits(3, (1,))),
}


@pytest.mark.parametrize("row", OTHERS.values(), ids=OTHERS)
def test_rows_that_ask_for_anything_else_are_run(fresh: Engine, llama: LoadedModel, row: Row) -> None:
    plain, _ = ask(fresh, llama, Row(TOKENS, captures=(HERE,)))
    ask(fresh, llama, row, owner="bob")
    other, paid = ask(fresh, llama, row)
    assert paid > 0
    if row.interventions:
        assert not torch.equal(other.captures[HERE], plain.captures[HERE])


def outcome_of(positions: int) -> Outcome:
    return Outcome(None, {HERE: torch.ones(positions, 8)}, "whole")


def test_the_least_recently_used_leaves_first() -> None:
    kept = KeptCaptures(2 * 4 * 8 * 4)
    lanes = [Lane(Row((index, 1, 2, 3), captures=(HERE,)), "ada") for index in range(3)]
    for lane in lanes[:2]:
        kept.put("m", lane, outcome_of(4))
    assert kept.get("m", lanes[0]) is not None
    kept.put("m", lanes[2], outcome_of(4))
    assert [kept.get("m", lane) is not None for lane in lanes] == [True, False, True]
    assert kept.get("other model", lanes[0]) is None
    kept.put("m", lanes[1], outcome_of(1_000))
    assert kept.get("m", lanes[1]) is None, "what is larger than all is not kept"
    assert kept.nbytes == 2 * 4 * 8 * 4
