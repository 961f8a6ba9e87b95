"""The engine's thread: turns, cancelling, failures, memory, tenants."""

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from services.catalogue.catalogue import model_folder
from services.contracts.errors import ErrorCode, JobFailed
from services.contracts.site import SiteName
from services.engine.engine import Engine, EngineClosed, EngineLimits
from services.engine.outcome import Outcome
from services.engine.readout import TokenLogits
from services.engine.row import Capture, FromRun, Intervention, Row, Site
from services.engine.ticket import JobCancelled, JobTicket
from services.models.hooks import hook_points
from services.models.load import LoadedModel, load_model
from tests.families import LAYERS
from tests.prepared import prepare_family
from tests.services.engine.conftest import LoadTiny

TOKENS = (17, 41, 5, 230, 99, 8)
SOURCE = (18, 41, 5, 61, 99, 8)
POISON = 313
READ = TokenLogits(5, (1, 2))


@pytest.fixture
def model(load_tiny: LoadTiny) -> LoadedModel:
    return load_tiny("llama", torch.float32)


def sweep(tokens: tuple[int, ...] = TOKENS) -> list[Row]:
    return [
        Row(tokens, (Intervention(Site(SiteName.RESID_PRE, layer), (position,), "set", FromRun(SOURCE)),), readout=READ)
        for layer in range(3)
        for position in range(6)
    ]


@contextmanager
def watching(model: LoadedModel, watch: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """Show every batch of token ids that the model embeds to `watch`, which may raise."""
    embedding = model.bridge.original_model.get_input_embeddings()

    def before(_module: Any, given: tuple[torch.Tensor, ...]) -> None:
        watch(given[0])

    handle = embedding.register_forward_pre_hook(before)
    try:
        yield
    finally:
        handle.remove()


class Gate:
    """Holds the engine's thread inside its first batch until it is opened."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()

    def __call__(self, _tokens: torch.Tensor) -> None:
        self.reached.set()
        assert self.open.wait(10)


def logits(outcomes: list[Outcome]) -> torch.Tensor:
    return torch.stack([outcome.values() for outcome in outcomes])


def test_rows_of_concurrent_jobs_read_what_they_read_alone(model: LoadedModel) -> None:
    prompts = [tuple((7 * job + token) % 300 + 5 for token in range(6)) for job in range(8)]
    with Engine(EngineLimits(threads=1)) as engine:
        alone = [logits(engine.run(model, sweep(prompt), job=JobTicket("alone", "a"))) for prompt in prompts]
    with Engine(EngineLimits(threads=1, batch_tokens=64)) as engine:
        futures = [
            engine.submit(model, sweep(prompt), job=JobTicket(str(job), "a")) for job, prompt in enumerate(prompts)
        ]
        together = [logits([future.result(30) for future in own]) for own in futures]
        assert engine.statistics().batches < 8 * 6
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


def test_a_small_job_is_done_while_a_sweep_before_it_still_runs(model: LoadedModel) -> None:
    gate = Gate()
    with Engine(EngineLimits(threads=1, batch_tokens=64)) as engine, watching(model, gate):
        long = engine.submit(model, sweep() * 50, job=JobTicket("sweep", "a"))
        assert gate.reached.wait(10)
        (small,) = engine.submit(model, [Row(SOURCE, readout=READ)], job=JobTicket("small", "b"))
        gate.open.set()
        small.result(30)
        assert sum(future.done() for future in long) < len(long) / 4
        wait(long)


def test_a_cancelled_jobs_rows_leave_the_line_and_the_batch_that_runs(model: LoadedModel) -> None:
    gate, cancelled = Gate(), threading.Event()
    with Engine(EngineLimits(threads=1, batch_tokens=16)) as engine, watching(model, gate):
        futures = engine.submit(model, sweep(), job=JobTicket("job", "a", cancelled=cancelled.is_set))
        assert gate.reached.wait(10)
        cancelled.set()
        gate.open.set()
        failures = [future.exception(30) for future in futures]
    assert all(isinstance(failure, JobCancelled) for failure in failures)
    assert engine.statistics().batches == 0
    assert engine.statistics().waiting_rows == 0


def test_only_the_guilty_row_of_a_batch_fails(model: LoadedModel) -> None:
    def poisoned(tokens: torch.Tensor) -> None:
        if bool((tokens == POISON).any()):
            raise ArithmeticError("poisoned")

    guilty = Row((POISON, *TOKENS[1:]), captures=(Capture(Site(SiteName.Z, 0)),), readout=READ)
    innocent = [Row((5 + index, *TOKENS[1:]), captures=guilty.captures, readout=READ) for index in range(5)]
    with Engine(EngineLimits(threads=1)) as engine:
        expected = logits(engine.run(model, innocent, job=JobTicket("warm", "a")))
        with watching(model, poisoned):
            bad = engine.submit(model, [guilty], job=JobTicket("bad", "a"))
            good = engine.submit(model, innocent, job=JobTicket("good", "b"))
            with pytest.raises(ArithmeticError, match="poisoned"):
                bad[0].result(30)
            found = logits([future.result(30) for future in good])
        assert engine.statistics().failed_rows == 1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_running_out_of_memory_halves_the_batch_until_it_fits(model: LoadedModel) -> None:
    seen: list[int] = []

    def small_memory(tokens: torch.Tensor) -> None:
        seen.append(tokens.shape[0])
        if len(tokens) > 2:
            raise torch.OutOfMemoryError("out of memory")

    rows = [Row((5 + index, *TOKENS), captures=(Capture(Site(SiteName.Z, 1)),)) for index in range(8)]
    with Engine(EngineLimits(threads=1)) as engine:
        engine.run(model, rows, job=JobTicket("warm", "b"))
        with watching(model, small_memory):
            outcomes = engine.run(model, rows, job=JobTicket("job", "a"))
    assert len(outcomes) == len(rows)
    assert seen == [8, 4, 2, 2, 4, 2, 2]


def test_a_row_that_does_not_fit_alone_fails_with_out_of_memory(model: LoadedModel) -> None:
    def no_memory(_tokens: torch.Tensor) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with Engine(EngineLimits(threads=1)) as engine:
        row = Row(TOKENS, captures=(Capture(Site(SiteName.Z, 1)),))
        engine.run(model, [row], job=JobTicket("warm", "b"))
        with watching(model, no_memory), pytest.raises(JobFailed, match="over 6 tokens") as failure:
            engine.run(model, [row], job=JobTicket("job", "a"))
    assert failure.value.code is ErrorCode.OUT_OF_MEMORY


def test_closing_gives_up_what_waits_and_nothing_new_is_taken(model: LoadedModel) -> None:
    gate = Gate()
    engine = Engine(EngineLimits(threads=1, batch_tokens=16))
    with watching(model, gate):
        futures: list[Future[Outcome]] = engine.submit(model, sweep(), job=JobTicket("job", "a"))
        assert gate.reached.wait(10)
        closing = threading.Thread(target=engine.close)
        closing.start()
        gate.open.set()
        closing.join(30)
    failures = [future.exception(0) for future in futures]
    assert None in failures
    assert {type(failure) for failure in failures if failure is not None} == {EngineClosed}
    with pytest.raises(EngineClosed):
        engine.submit(model, sweep(), job=JobTicket("late", "a"))


def test_a_future_that_its_owner_cancels_harms_nobody(model: LoadedModel) -> None:
    gate = Gate()
    with Engine(EngineLimits(threads=1, batch_tokens=16)) as engine, watching(model, gate):
        futures = engine.submit(model, sweep(), job=JobTicket("job", "a"))
        assert gate.reached.wait(10)
        cancelled = [future for future in futures if future.cancel()]
        gate.open.set()
        assert len(engine.run(model, sweep(), job=JobTicket("other", "a"))) == len(futures)
    assert 0 < len(cancelled) < len(futures)
    assert all(future.done() for future in futures)


def test_a_model_that_is_let_go_leaves_memory_with_all_that_was_made_for_it(model: LoadedModel, tmp_path: Path) -> None:
    facts = prepare_family("gpt2", tmp_path / "sources", tmp_path)
    folder = model_folder(tmp_path, facts.id)
    with Engine(EngineLimits(threads=1)) as engine:
        passing = load_model(folder, facts, device=torch.device("cpu"), dtype=torch.float32)
        engine.run(passing, sweep(), job=JobTicket("job", "a"))
        weights = weakref.ref(passing.bridge.original_model)
        del passing
        engine.run(model, sweep(), job=JobTicket("job", "a"))
        gc.collect()
        assert weights() is None


def test_a_base_run_is_computed_once_per_owner(model: LoadedModel) -> None:
    opened: list[list[list[int]]] = []
    with Engine(EngineLimits(threads=1)) as engine:
        engine.run(model, sweep(), job=JobTicket("first", "a"))
        with watching(model, lambda tokens: opened.append(tokens.tolist())):
            again = engine.run(model, sweep(), job=JobTicket("again", "a"))
            assert opened == [[list(TOKENS)]]  # the rows that start at 0 before block 0, and no base run
            other = engine.run(model, sweep(), job=JobTicket("other", "b"))
        assert [list(TOKENS), list(SOURCE)] in [sorted(rows) for rows in opened]
        statistics = engine.statistics()
    assert torch.equal(logits(again), logits(other))
    assert statistics.base_run_hits > 0
    assert 0 < statistics.base_run_bytes < 2**20


def test_a_full_cache_forgets_and_nothing_else_changes(model: LoadedModel) -> None:
    with Engine(EngineLimits(threads=1)) as engine:
        expected = logits(engine.run(model, sweep(), job=JobTicket("job", "a")))
    with Engine(EngineLimits(threads=1, base_run_bytes=10_000, batch_tokens=12)) as engine:
        found = logits(engine.run(model, sweep(), job=JobTicket("job", "a")))
        assert engine.statistics().base_run_evictions > 0
        assert engine.statistics().base_run_bytes <= 10_000
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_no_hook_outlives_its_batch_not_even_a_failed_one(model: LoadedModel) -> None:
    with Engine(EngineLimits(threads=1)) as engine:
        engine.run(model, sweep(), job=JobTicket("job", "a"))
        with pytest.raises(ArithmeticError), watching(model, _fail):
            engine.run(model, [Row(TOKENS, captures=(Capture(Site(SiteName.Z, 1)),))], job=JobTicket("job", "a"))
    assert not any(point.fwd_hooks or point.bwd_hooks for point in hook_points(model.bridge).values())
    assert not any("forward" in vars(block) for block in model.bridge.blocks)


def _fail(_tokens: torch.Tensor) -> None:
    raise ArithmeticError


def test_a_job_is_told_its_progress_and_what_it_cost(model: LoadedModel) -> None:
    told: list[tuple[int, int]] = []
    ticket = JobTicket("job", "a", on_progress=lambda done, planned: told.append((done, planned)))
    with Engine(EngineLimits(threads=1, batch_tokens=32)) as engine:
        engine.run(model, sweep(), job=ticket)
    assert told[0] == (0, 18)
    assert told[-1] == (18, 18)
    assert told == sorted(told)
    assert 12 * LAYERS < ticket.token_layers < 18 * 6 * LAYERS
    assert ticket.engine_seconds > 0


def test_a_model_that_cannot_be_driven_block_by_block_runs_whole_and_says_so(load_tiny: LoadTiny) -> None:
    model = load_tiny("mistral", torch.float32)
    with Engine(EngineLimits(threads=1)) as engine:
        branched = engine.run(model, sweep(), job=JobTicket("job", "a"))
    strange = handing_blocks_something_strange(model)
    with strange, Engine(EngineLimits(threads=1, batch_tokens=32)) as engine:
        whole = engine.run(model, sweep(), job=JobTicket("job", "a"))
    assert {outcome.execution for outcome in branched} == {"branched"}
    assert {outcome.execution for outcome in whole} == {"whole"}
    torch.testing.assert_close(logits(whole), logits(branched), rtol=0, atol=1e-5)


@contextmanager
def handing_blocks_something_strange(model: LoadedModel) -> Iterator[None]:
    """As a family would whose blocks get a tensor that lensd knows nothing of; the model counts as not tried yet."""

    def add(_module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        return given, {**named, "per_layer_input": torch.zeros(1)}

    tried = dict(model.attachments)
    model.attachments.clear()
    handle = model.bridge.blocks[1].register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
        model.attachments.clear()
        model.attachments.update(tried)
