"""From where a row has to be computed, and what may share a batch: a pure matter."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from services.contracts.site import SiteName
from services.engine.lane import Lane
from services.engine.planner import bucket, grafted, plan
from services.engine.readout import Loss, TokenLogits
from services.engine.row import Capture, FromRun, Intervention, Row, Site
from services.engine.ticket import JobTicket
from services.models.load import LoadedModel
from tests.services.engine.conftest import LoadTiny

TOKENS = (5, 6, 7, 8, 9, 10)
ALIKE_UP_TO_3 = (5, 6, 7, 80, 9, 10)
LAYERS = 3
READ = TokenLogits(5, (1,))


@pytest.fixture(scope="module")
def model(load_tiny: LoadTiny) -> LoadedModel:
    return load_tiny("llama", torch.float32)


def patch(site: SiteName, layer: int | None, *positions: int, source: tuple[int, ...] | None = None) -> Intervention:
    value = 0.0 if source is None else FromRun(source)
    return Intervention(Site(site, layer), positions or None, "set", value)


def begins(row: Row) -> tuple[int, int]:
    lane = grafted(Lane(row, "owner"), LAYERS)
    return lane.start, lane.join


@pytest.mark.parametrize(
    ("row", "start", "join"),
    [
        (Row(TOKENS, (patch(SiteName.RESID_PRE, 1, 4),), readout=READ), 4, 1),
        (Row(TOKENS, (patch(SiteName.RESID_POST, 1, 4),), readout=READ), 4, 2),
        (Row(TOKENS, (patch(SiteName.RESID_POST, 2, 4),), readout=READ), 4, 3),
        (Row(TOKENS, (patch(SiteName.Z, 2),), readout=READ), 0, 2),
        (Row(TOKENS, (patch(SiteName.Z, 2, 4), patch(SiteName.Q, 1, 5)), readout=READ), 4, 1),
        (Row(TOKENS, (patch(SiteName.Z, 2, 4),), readout=TokenLogits(3, (1,))), 3, 2),
        (Row(TOKENS, (patch(SiteName.Z, 2, 4),), readout=Loss(TOKENS[1:])), 4, 2),
        (Row(TOKENS, (patch(SiteName.Z, 2, 4),), (Capture(Site(SiteName.RESID_PRE, 1), (2,)),), READ), 2, 1),
        (Row(TOKENS, readout=READ), 5, 3),
        (Row(TOKENS, readout=Loss(TOKENS[1:])), 5, 3),
    ],
)
def test_a_row_is_computed_from_the_first_position_and_lowest_layer_it_touches(row: Row, start: int, join: int) -> None:
    assert begins(row) == (start, join)


def test_positions_before_the_runs_differ_are_no_change() -> None:
    assert begins(Row(TOKENS, (patch(SiteName.Z, 1, source=ALIKE_UP_TO_3),), readout=READ)) == (3, 1)
    assert begins(Row(TOKENS, (patch(SiteName.Z, 1, 1, 2, source=ALIKE_UP_TO_3),), readout=READ)) == (5, 3)
    assert begins(Row(TOKENS, (patch(SiteName.Z, 1, source=TOKENS),), readout=READ)) == (5, 3)
    added = Intervention(Site(SiteName.Z, 1), (1,), "add", FromRun(ALIKE_UP_TO_3))
    assert begins(Row(TOKENS, (added,), readout=READ)) == (1, 1)


def test_what_touches_the_embedding_starts_from_its_tokens() -> None:
    lane = Lane(Row(TOKENS, (patch(SiteName.EMBED, None, 4),), readout=READ), "owner")
    assert grafted(lane, LAYERS) is lane


def test_a_single_patched_row_is_not_worth_an_unpatched_run_and_a_sweep_is(model: LoadedModel) -> None:
    row = Row(TOKENS, (patch(SiteName.RESID_PRE, 1, 4),), readout=READ)
    assert [task.lane.grafted for task in plan(model, [row], JobTicket("job", "owner"))] == [False]
    assert {task.lane.grafted for task in plan(model, [row] * 5, JobTicket("job", "owner"))} == {True}


def test_tasks_come_in_the_order_of_their_rows_and_run_by_prompt_then_layer(model: LoadedModel) -> None:
    prompts = (TOKENS, ALIKE_UP_TO_3)
    rows = [
        Row(tokens, (patch(SiteName.RESID_PRE, layer, 4),), readout=READ) for layer in (2, 0, 1) for tokens in prompts
    ]
    tasks = plan(model, rows, JobTicket("job", "owner"))
    assert [task.lane.row for task in tasks] == rows
    running = sorted(tasks, key=lambda task: task.order)
    assert [(prompts.index(task.lane.row.tokens), task.lane.join) for task in running] == [
        (0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)
    ]  # fmt: skip


@given(st.integers(1, 10_000))
def test_a_bucket_pads_by_a_slot_or_a_quarter_at_most(length: int) -> None:
    assert length <= bucket(length) <= max(length + 1, 1.25 * length)
    assert bucket(bucket(length)) == bucket(length)
