"""What makes two jobs the same question, and two computations alike."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from services.catalogue.catalogue import Catalogue, open_catalogue
from services.contracts.inputs import Inputs
from services.contracts.job import JobSpec
from services.contracts.result import PromptTokens
from services.jobs.cache import PoolRunner, fingerprint, question
from services.jobs.memory import MemoryWorkers
from services.jobs.ports import WorkerState
from services.jobs.record import NewJob
from tests.api.catalogue import MODEL, SAE, write_catalogue
from tests.services.jobs.bench import Clock
from tests.services.jobs.samples import new_job

RUNNER = "r" * 64


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    write_catalogue(tmp_path)
    return open_catalogue(tmp_path)


def asked(owner: str = "ada", **spec: Any) -> NewJob:
    return new_job(owner, **spec)


@pytest.mark.parametrize(
    "same",
    [
        {},
        {"label": "again", "metadata": {"run": "7"}},
        {"priority": "batch"},
        {"deadline_s": 60},
        {"cache": False},
        {"top_k": 10},
        {"bos": None},
    ],
)
def test_what_asks_nothing_and_a_default_written_out_make_no_other_question(same: dict[str, Any]) -> None:
    assert question(asked(**same), shared=False) == question(asked(), shared=False)


@pytest.mark.parametrize(
    "other", [{"top_k": 11}, {"prompts": ["London"]}, {"sae": "other-sae"}, {"model": "other"}, {"bos": True}]
)
def test_another_specification_is_another_question(other: dict[str, Any]) -> None:
    assert question(asked(**other), shared=False) != question(asked(), shared=False)


def test_a_prompt_that_is_read_otherwise_is_another_question() -> None:
    read = PromptTokens(ids=(5, 8), strings=("Par", "is"), bos_prepended=False)
    job = asked()
    otherwise = job.model_copy(update={"inputs": Inputs(prompts=(read,), bos="tokenizer")})
    assert question(otherwise, shared=False) != question(job, shared=False)


def test_every_owner_asks_its_own_questions_unless_results_are_shared() -> None:
    ada, bob = asked("ada"), asked("bob")
    assert question(ada, shared=False) != question(bob, shared=False)
    assert question(ada, shared=True) == question(bob, shared=True)
    assert question(ada, shared=True) != question(ada, shared=False)


def test_whatever_decides_the_numbers_is_in_the_fingerprint(catalogue: Catalogue) -> None:
    model, sae = catalogue.model(MODEL), catalogue.sae(SAE)
    known = fingerprint(RUNNER, model, sae)
    others = [
        fingerprint("s" * 64, model, sae),
        fingerprint(RUNNER, model, None),
        *(
            fingerprint(RUNNER, model.model_copy(update={name: "9" * 64}), sae)
            for name in ("weights_sha256", "tokenizer_sha256", "revision")
        ),
        *(
            fingerprint(RUNNER, model, sae.model_copy(update=change))
            for change in (
                {"sha256": "9" * 64},
                {"config_sha256": "9" * 64},
                {"extras_sha256": "9" * 64},
                {"norm_threshold": 9.0},
            )
        ),
    ]
    assert len({known, *others}) == 1 + len(others)


def test_what_only_describes_a_model_or_an_sae_is_not(catalogue: Catalogue) -> None:
    model, sae = catalogue.model(MODEL), catalogue.sae(SAE)
    described = (
        model.model_copy(update={"token_layers_per_second": 9.0, "license": "MIT"}),
        sae.model_copy(update={"card": {"explained_variance": 0.1}, "license": "MIT"}),
    )
    assert fingerprint(RUNNER, *described) == fingerprint(RUNNER, model, sae)


def worker(name: str, runner: str | None, pool: str = "default") -> WorkerState:
    return WorkerState(name, pool, {}, runner)


@pytest.mark.parametrize(
    ("alive", "said"),
    [
        ([], None),
        ([worker("w1", "a")], "a"),
        ([worker("w1", "a"), worker("w2", "a")], "a"),
        ([worker("w1", "a"), worker("w2", "b")], None),
        ([worker("w1", "a"), worker("w2", None)], None),
        ([worker("w1", None)], None),
        ([worker("w1", "a"), worker("w2", "b", pool="other")], "a"),
        ([worker("w2", "b", pool="other")], None),
    ],
)
def test_workers_of_the_pool_that_differ_or_are_none_say_nothing(alive: list[WorkerState], said: str | None) -> None:
    workers = MemoryWorkers()
    for state in alive:
        workers.announce(state, ttl_s=60)
    assert PoolRunner(workers, "default", kept_s=0).said() == said


def test_workers_are_asked_again_after_a_while_and_not_before() -> None:
    workers, clock = MemoryWorkers(), Clock()
    runner = PoolRunner(workers, "default", kept_s=0.5, clock=lambda: clock().timestamp())
    assert runner.said() is None
    workers.announce(worker("w1", "a"), ttl_s=60)
    clock.advance(0.4)
    assert runner.said() is None
    clock.advance(0.1)
    assert runner.said() == "a"


def test_nothing_that_a_job_draws_is_drawn_without_a_seed() -> None:
    """An unseeded draw would make the same job a new question each time: a result could not be kept for it."""
    schema = TypeAdapter(JobSpec).json_schema()
    seeds = [
        (title, each["properties"]["seed"])
        for title, each in schema["$defs"].items()
        if "seed" in each.get("properties", {})
    ]
    assert len(seeds) >= 5
    for title, seed in seeds:
        assert (seed.get("type"), seed.get("default")) == ("integer", 0), title
