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
from services.contracts.job import JobProgress
from services.jobs.memory import MemoryEvents, MemoryJobStore
from services.jobs.ports import JobEvents, JobStore
from services.jobs.record import JobEvent, Size
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
