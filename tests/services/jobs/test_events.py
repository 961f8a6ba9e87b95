"""What every watcher of a job is promised, on the fake and on a real server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from redis import Redis

from services.adapters.redis_client import make_client
from services.adapters.redis_events import RedisJobEvents
from services.adapters.redis_jobs import RedisJobStore
from services.contracts.errors import NotFound
from services.contracts.generation import NewTokens
from services.contracts.job import JobProgress
from services.jobs.memory import MemoryEvents, MemoryJobStore
from services.jobs.ports import JobEvents, JobStore
from services.jobs.record import Claim, JobEvent, Size
from tests.services.adapters.valkey import valkey_server
from tests.services.jobs.bench import POLICY
from tests.services.jobs.samples import DONE, new_job

pytestmark = pytest.mark.anyio


@dataclass
class Scene:
    store: JobStore
    events: JobEvents


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["memory", "valkey"])
async def scene(request: pytest.FixtureRequest) -> AsyncIterator[Scene]:
    if request.param == "memory":
        store = MemoryJobStore(POLICY)
        yield Scene(store, MemoryEvents(store))
        return
    async with redis_scene(request.getfixturevalue("redis_url")) as scene:
        yield scene


@asynccontextmanager
async def redis_scene(url: str) -> AsyncIterator[Scene]:
    with make_client(url, patient=False) as client:
        async with RedisJobEvents(url) as events:
            yield Scene(RedisJobStore(client, POLICY), events)


async def collect(scene: Scene, job_id: str, after: str | None = None) -> list[JobEvent]:
    async with asyncio.timeout(10):
        return [event async for event in scene.events.watch(job_id, after)]


def run_through(store: JobStore) -> None:
    """The pool's next job, from claim to end: claimed, progress, succeeded."""
    claim = store.claim("default", "w1", tuple(Size))
    assert claim is not None
    store.progress(claim, JobProgress(done=1, planned=2))
    store.finish(claim, DONE)


async def test_a_watcher_sees_a_snapshot_then_every_change_then_the_end(scene: Scene) -> None:
    job_id = scene.store.create(new_job(label="x")).id
    async with aclosing(scene.events.watch(job_id)) as watching:
        first = await anext(watching)
        run_through(scene.store)
        async with asyncio.timeout(10):
            rest = [event async for event in watching]
    assert first.summary.status == "queued"
    assert [event.summary.status for event in rest] == ["running", "running", "succeeded"]
    assert [event.summary.progress.done for event in rest] == [0, 1, 1]
    assert [int(event.id) for event in (first, *rest)] == [1, 2, 3, 4]
    record = scene.store.get(job_id)
    assert record is not None
    assert rest[-1].summary == record.summary()


async def test_an_ended_job_has_one_event_its_last(scene: Scene) -> None:
    job_id = scene.store.create(new_job()).id
    run_through(scene.store)
    (event,) = await collect(scene, job_id)
    assert event.summary.status == "succeeded"


async def test_a_watcher_resumes_after_the_last_event_it_saw(scene: Scene) -> None:
    job_id = scene.store.create(new_job()).id
    run_through(scene.store)
    assert [event.summary.status for event in await collect(scene, job_id, "1")] == ["running", "running", "succeeded"]
    assert [event.id for event in await collect(scene, job_id, "3")] == ["4"]
    assert await collect(scene, job_id, "4") == []


async def test_an_earlier_event_says_nothing_of_what_came_later(scene: Scene) -> None:
    job_id = scene.store.create(new_job()).id
    run_through(scene.store)
    started, *_ = await collect(scene, job_id, "1")
    assert started.summary.started_at is not None
    assert started.summary.finished_at is None


async def test_resuming_after_an_event_that_never_was_starts_over(scene: Scene) -> None:
    job_id = scene.store.create(new_job()).id
    run_through(scene.store)
    for after in ("99", "nonsense", "-1", "²"):
        assert [event.id for event in await collect(scene, job_id, after)] == ["4"]


async def test_watching_a_job_that_does_not_exist_is_refused(scene: Scene) -> None:
    with pytest.raises(NotFound):
        await collect(scene, new_job().id)


async def test_a_watcher_of_a_deleted_job_sees_it_cancelled(scene: Scene) -> None:
    job_id = scene.store.create(new_job()).id
    watching = asyncio.create_task(collect(scene, job_id))
    await asyncio.sleep(0.1)
    scene.store.delete(job_id)
    assert [event.summary.status for event in await watching] == ["queued", "cancelled"]


def word(number: int, strength: float | None = None) -> NewTokens:
    """A text's token by its number."""
    return NewTokens(
        prompt=0, strength=strength, first=number, tokens=(40 + number,), strings=(f" {number}",), log_probs=(-1.0,)
    )


def tell(store: JobStore, claim: Claim, *tokens: NewTokens) -> None:
    store.progress(claim, JobProgress(done=1, planned=9), tokens)


def claimed(store: JobStore) -> Claim:
    claim = store.claim("default", "w1", tuple(Size))
    assert claim is not None
    return claim


async def test_tokens_come_with_the_events_of_a_job_joined_by_text(scene: Scene) -> None:
    job_id = scene.store.create(new_job()).id
    async with aclosing(scene.events.watch(job_id)) as watching:
        await anext(watching)
        claim = claimed(scene.store)
        tell(scene.store, claim, word(0), word(0, 2.0), word(1))
        tell(scene.store, claim, word(2))
        async with asyncio.timeout(10):
            running, first, second = [await anext(watching) for _ in range(3)]
        scene.store.finish(claim, DONE)
        async with asyncio.timeout(10):
            (end,) = [event async for event in watching]
    assert [event.tokens for event in (running, end)] == [(), ()]
    assert [(piece.strength, piece.first, piece.tokens) for piece in first.tokens] == [
        (None, 0, (40, 41)),
        (2.0, 0, (40,)),
    ]
    assert [(piece.strength, piece.first, piece.strings) for piece in second.tokens] == [(None, 2, (" 2",))]
    assert [int(event.id) for event in (running, first, second, end)] == [2, 3, 4, 5]


async def test_a_late_watcher_gets_all_tokens_so_far_and_one_that_resumes_the_rest(scene: Scene) -> None:
    job_id = scene.store.create(new_job()).id
    claim = claimed(scene.store)
    for number in range(3):
        tell(scene.store, claim, word(number))
    async with asyncio.timeout(10):
        async with aclosing(scene.events.watch(job_id)) as late:
            snapshot = await anext(late)
        async with aclosing(scene.events.watch(job_id, "4")) as resumed:
            rest = await anext(resumed)
    assert (snapshot.id, [piece.tokens for piece in snapshot.tokens]) == ("5", [(40, 41, 42)])
    assert (rest.id, [(piece.first, piece.tokens) for piece in rest.tokens]) == ("5", [(2, (42,))])


async def test_one_that_resumes_after_an_event_no_longer_kept_gets_all_tokens(scene: Scene) -> None:
    job_id = scene.store.create(new_job()).id
    claim = claimed(scene.store)
    for number in range(80):
        tell(scene.store, claim, word(number))
    async with asyncio.timeout(10), aclosing(scene.events.watch(job_id, "3")) as resumed:
        events = [await anext(resumed) for _ in range(64)]
    tokens = {
        piece.first + place: token
        for event in events
        for piece in event.tokens
        for place, token in enumerate(piece.tokens)
    }
    assert [tokens[number] for number in range(80)] == [40 + number for number in range(80)]


async def test_a_new_attempt_begins_its_texts_anew(scene: Scene) -> None:
    job_id = scene.store.create(new_job()).id
    first = claimed(scene.store)
    tell(scene.store, first, word(0), word(1))
    scene.store.release(first)
    again = claimed(scene.store)
    tell(scene.store, again, word(0))
    async with asyncio.timeout(10), aclosing(scene.events.watch(job_id)) as watching:
        snapshot = await anext(watching)
    assert [(piece.first, piece.tokens) for piece in snapshot.tokens] == [(0, (40,))]


async def test_nothing_is_kept_of_the_tokens_of_an_ended_job(scene: Scene, request: pytest.FixtureRequest) -> None:
    job_id = scene.store.create(new_job()).id
    claim = claimed(scene.store)
    tell(scene.store, claim, word(0))
    scene.store.finish(claim, DONE)
    (end,) = await collect(scene, job_id)
    assert (end.summary.status, end.tokens) == ("succeeded", ())
    if isinstance(scene.store, RedisJobStore):
        with Redis.from_url(request.getfixturevalue("redis_url")) as client:
            assert not client.exists(f"lensd:tokens:{job_id}")


async def test_many_watchers_of_many_jobs_all_see_their_end(scene: Scene) -> None:
    jobs = [scene.store.create(new_job()).id for _ in range(40)]
    watching = [asyncio.create_task(collect(scene, job_id)) for job_id in jobs for _ in range(5)]
    await asyncio.sleep(0.1)
    for _ in jobs:
        await asyncio.to_thread(run_through, scene.store)
    ends = [(await task)[-1].summary for task in watching]
    assert [end.id for end in ends] == [job_id for job_id in jobs for _ in range(5)]
    assert {end.status for end in ends} == {"succeeded"}


async def test_watchers_that_leave_are_forgotten(redis_url: str) -> None:
    async with redis_scene(redis_url) as scene:
        job_id = scene.store.create(new_job()).id
        for _ in range(20):
            async with aclosing(scene.events.watch(job_id)) as watching:
                await anext(watching)
        assert isinstance(scene.events, RedisJobEvents)
        assert not scene.events._watchers


async def test_a_watcher_rides_out_an_outage_and_misses_nothing(tmp_path: Path) -> None:
    with valkey_server(tmp_path) as server:
        async with redis_scene(server.url) as scene:
            job_id = scene.store.create(new_job()).id
            watching = asyncio.create_task(collect(scene, job_id))
            await asyncio.sleep(0.2)
            await asyncio.to_thread(server.stop)
            await asyncio.sleep(0.3)
            await asyncio.to_thread(server.start)
            await asyncio.to_thread(run_through, scene.store)
            assert [event.summary.status for event in await watching] == ["queued", "running", "running", "succeeded"]


async def test_a_watcher_of_a_job_that_an_outage_lost_is_let_go(tmp_path: Path) -> None:
    with valkey_server(tmp_path) as server, Redis.from_url(server.url) as client:
        async with redis_scene(server.url) as scene:
            job_id = scene.store.create(new_job()).id
            watching = asyncio.create_task(collect(scene, job_id))
            await asyncio.sleep(0.2)
            client.flushall()
            await asyncio.to_thread(server.stop)
            await asyncio.to_thread(server.start)
            assert [event.summary.status for event in await watching] == ["queued"]
