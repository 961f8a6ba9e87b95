"""Rows with gradients in the engine: batches, turns, memory, cost, and what is refused."""

import random
import threading
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from services.contracts.site import SiteName
from services.engine.check import InvalidRow, check_row
from services.engine.engine import Engine, EngineLimits
from services.engine.objective import Objective, Weighted, WeightedProbabilities
from services.engine.outcome import Outcome
from services.engine.readout import Loss, Readout, TokenLogits, TopK
from services.engine.row import Capture, Gradients, Intervention, Row, Site
from services.engine.ticket import JobCancelled, JobTicket
from services.models.hooks import hook_points
from services.models.load import LoadedModel
from tests.families import LAYERS
from tests.services.engine.conftest import LoadTiny
from tests.services.engine.test_engine import Gate, watching
from tests.services.engine.test_gradients import DIFFERENCE, READ, SOURCE, TOKENS, every_site


def gradient_row(model: LoadedModel, tokens: tuple[int, ...]) -> Row:
    last = len(tokens) - 1
    sites = tuple(replace(capture, positions=None) for capture in every_site(model) if capture.site.head is None)
    patch = Intervention(Site(SiteName.Z, 1, head=0), (last,), "scale", 0.5)
    readout = TokenLogits(last, (33, 60))
    return Row(tokens, (patch,), (sites[0],), readout, Gradients(DIFFERENCE, sites))


def rows_of_many_lengths(model: LoadedModel) -> list[Row]:
    chooser = random.Random(0)
    lengths = (5, 8, 13, 6, 8, 11, 13, 12, 7)
    return [gradient_row(model, tuple(chooser.randrange(3, 320) for _ in range(length))) for length in lengths]


def assert_same(one: Outcome, other: Outcome) -> None:
    torch.testing.assert_close(one.values(), other.values(), rtol=1e-5, atol=1e-5)
    for ours, theirs in ((one.gradients, other.gradients), (one.captures, other.captures)):
        assert list(ours) == list(theirs)
        for capture, tensor in ours.items():
            torch.testing.assert_close(tensor, theirs[capture], rtol=1e-5, atol=1e-5 * (1 + float(tensor.abs().max())))


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "gemma2", "qwen3"])
def test_a_batch_of_rows_has_the_gradients_of_its_rows_alone(family: str, load_tiny: LoadTiny) -> None:
    model = load_tiny(family, torch.float32)
    rows = rows_of_many_lengths(model)
    with Engine(EngineLimits(threads=1)) as engine:
        together = engine.run(model, rows, job=JobTicket("job", "owner"))
        assert engine.statistics().batches < len(rows)
    with Engine(EngineLimits(threads=1, gradient_batch_tokens=1)) as engine:
        alone = engine.run(model, rows, job=JobTicket("job", "owner"))
        assert engine.statistics().batches == len(rows)
    for one, other in zip(together, alone, strict=True):
        assert_same(one, other)


def test_rows_with_and_without_gradients_in_one_submission_yield_what_they_yield_apart(load_tiny: LoadTiny) -> None:
    model = load_tiny("llama", torch.float32)
    rows = rows_of_many_lengths(model)
    plain = [replace(row, gradients=None) for row in rows]
    with Engine(EngineLimits(threads=1)) as engine:
        apart = engine.run(model, rows, job=JobTicket("a", "a")) + engine.run(model, plain, job=JobTicket("b", "a"))
        mixed = engine.run(model, rows + plain, job=JobTicket("c", "a"))
    for one, other in zip(mixed, apart, strict=True):
        assert_same(one, other)
    for row, outcome in zip(rows + plain, mixed, strict=True):
        assert len(outcome.gradients) == (0 if row.gradients is None else len(row.gradients.sites))


def test_a_plain_job_is_done_while_many_gradients_before_it_still_wait(load_tiny: LoadTiny) -> None:
    model, gate = load_tiny("llama", torch.float32), Gate()
    sweep = [gradient_row(model, TOKENS)] * 20
    with Engine(EngineLimits(threads=1, gradient_batch_tokens=16)) as engine, watching(model, gate):
        long = engine.submit(model, sweep, job=JobTicket("sweep", "a"))
        assert gate.reached.wait(10)
        (small,) = engine.submit(model, [Row(SOURCE, readout=READ)], job=JobTicket("small", "b"))
        gate.open.set()
        small.result(30)
        assert sum(future.done() for future in long) < len(long) / 2


def test_a_cancelled_jobs_gradients_leave_the_line_and_the_batch_that_runs(load_tiny: LoadTiny) -> None:
    model, gate, cancelled = load_tiny("llama", torch.float32), Gate(), threading.Event()
    with Engine(EngineLimits(threads=1, gradient_batch_tokens=16)) as engine, watching(model, gate):
        ticket = JobTicket("job", "a", cancelled=cancelled.is_set)
        futures = engine.submit(model, [gradient_row(model, TOKENS)] * 10, job=ticket)
        assert gate.reached.wait(10)
        cancelled.set()
        gate.open.set()
        failures = [future.exception(30) for future in futures]
    assert all(isinstance(failure, JobCancelled) for failure in failures)


def test_a_gradients_way_back_ends_between_two_blocks_once_its_job_is_cancelled(load_tiny: LoadTiny) -> None:
    model, cancelled = load_tiny("llama", torch.float32), threading.Event()
    layers = model.bridge.original_model.model.layers
    came_back: list[int] = []

    def note(layer: int) -> None:
        came_back.append(layer)
        cancelled.set()

    handles = [
        layers[layer].mlp.register_full_backward_hook(lambda *_, layer=layer: note(layer)) for layer in range(LAYERS)
    ]
    try:
        with Engine(EngineLimits(threads=1)) as engine:
            job = JobTicket("job", "a", cancelled=cancelled.is_set)
            with pytest.raises(JobCancelled):
                engine.run(model, [gradient_row(model, TOKENS)], job=job)
            assert came_back == [LAYERS - 1]
            assert job.token_layers == 3 * len(TOKENS) * LAYERS, "what was begun is paid"
            (again,) = engine.run(model, [gradient_row(model, TOKENS)], job=JobTicket("next", "a"))
    finally:
        for handle in handles:
            handle.remove()
    with Engine(EngineLimits(threads=1)) as fresh:
        (want,) = fresh.run(model, [gradient_row(model, TOKENS)], job=JobTicket("other", "b"))
    assert_same(again, want)


def test_gradients_that_run_out_of_memory_come_in_smaller_batches_and_leave_others_theirs(load_tiny: LoadTiny) -> None:
    model = load_tiny("llama", torch.float32)
    rows = rows_of_many_lengths(model)
    sizes: list[int] = []

    def small_memory(tokens: Tensor) -> None:
        sizes.append(len(tokens))
        if len(tokens) > 1 and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("out of memory")

    plain = [Row(TOKENS, captures=(Capture(Site(SiteName.Z, 0)),))] * 9
    with Engine(EngineLimits(threads=1, gradient_batch_tokens=80)) as engine:
        expected = engine.run(model, rows, job=JobTicket("job", "a"))
        with watching(model, small_memory):
            found = engine.run(model, rows, job=JobTicket("job", "a"))
            sizes.clear()
            engine.run(model, plain, job=JobTicket("plain", "a"))
            assert sizes == [9]
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)


def test_a_gradient_is_charged_as_three_forward_passes(load_tiny: LoadTiny, engine: Engine) -> None:
    model, forward, both = load_tiny("llama", torch.float32), JobTicket("forward", "a"), JobTicket("both", "a")
    row = Row(TOKENS, readout=READ, gradients=Gradients(DIFFERENCE, (Capture(Site(SiteName.EMBED)),)))
    engine.run(model, [row], job=both)
    engine.run(model, [Row(TOKENS, captures=(Capture(Site(SiteName.EMBED)),), readout=READ)], job=forward)
    assert both.token_layers == 3 * forward.token_layers == 3 * len(TOKENS) * LAYERS


def test_gradients_leave_nothing_behind(load_tiny: LoadTiny, engine: Engine, job: JobTicket) -> None:
    model = load_tiny("gpt2", torch.float32)
    outcomes = engine.run(model, rows_of_many_lengths(model), job=job)
    assert not any(point.fwd_hooks or point.bwd_hooks for point in hook_points(model.bridge).values())
    held = [*model.bridge.original_model.parameters(), *model.bridge.parameters(), *model.bridge.buffers()]
    assert not any(tensor.requires_grad or tensor.grad is not None for tensor in held)
    for outcome in outcomes:
        given = [outcome.values(), *outcome.captures.values(), *outcome.gradients.values()]
        assert all(tensor.grad_fn is None and tensor.dtype is torch.float32 for tensor in given)


ANY = (Capture(Site(SiteName.RESID_PRE, 1)),)


@pytest.mark.parametrize(
    ("family", "given", "message"),
    [
        ("llama", (READ, DIFFERENCE, ()), "gradients at no site"),
        ("llama", (None, DIFFERENCE, ANY), "needs a readout"),
        ("llama", (TopK(7, 3), DIFFERENCE, ANY), "needs a readout"),
        ("llama", (READ, Weighted((1.0,)), ANY), "expected 2 finite ones"),
        ("llama", (READ, Weighted((1.0, float("nan"))), ANY), "expected 2 finite ones"),
        ("llama", (TokenLogits(7, None), DIFFERENCE, ANY), "expected 320 finite ones"),
        ("llama", (Loss(TOKENS[1:]), DIFFERENCE, ANY), "expected 1 finite ones"),
        ("llama", (READ, WeightedProbabilities((1.0, -1.0)), ANY), "needs log probabilities"),
        ("llama", (READ, DIFFERENCE, (Capture(Site(SiteName.Z, 1), (8,)),)), "positions"),
        ("llama", (READ, DIFFERENCE, (Capture(Site(SiteName.K, 1, head=2)),)), "head 2 of k does not exist"),
        ("llama", (READ, DIFFERENCE, (Capture(Site(SiteName.Z, 3)),)), "layer 3 does not exist"),
        ("opt", (READ, DIFFERENCE, (Capture(Site(SiteName.PATTERN, 1)),)), "pattern of tiny-opt cannot be written"),
        (
            "gpt_neox",
            (READ, DIFFERENCE, (Capture(Site(SiteName.RESID_MID, 1)),)),
            "resid_mid of tiny-gpt-neox cannot be",
        ),
    ],
)
def test_gradients_that_the_model_cannot_give_are_refused(
    family: str, given: tuple[Readout | None, Objective, tuple[Capture, ...]], message: str, load_tiny: LoadTiny
) -> None:
    readout, objective, sites = given
    row = Row(TOKENS, readout=readout, gradients=Gradients(objective, sites))
    with pytest.raises(InvalidRow, match=message):
        check_row(load_tiny(family, torch.float32).facts, row)
