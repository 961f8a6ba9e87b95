"""Following a job as server-sent events."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from api.auth import still_valid
from api.events import resume_point, stream
from services.contracts.generation import NewTokens
from services.contracts.job import JobProgress, JobState, JobStatus, JobSummary, JobTokens
from services.jobs.record import JobEvent, StoredResult
from services.tenants.keys import Scope, new_key, rotated
from tests.api.conftest import Stand
from tests.api.specs import PATCHING, patching_result

pytestmark = pytest.mark.anyio

STORED = StoredResult(document=patching_result().model_dump_json())


@dataclass(frozen=True)
class Received:
    id: str
    event: str
    job: JobState


def received(text: str) -> Sequence[Received]:
    """The events of a stream, comments and `retry` left out."""
    frames = [dict(line.split(": ", 1) for line in frame.splitlines()) for frame in text.split("\n\n") if frame]
    return [
        Received(frame["id"], frame["event"], JobState.model_validate_json(frame["data"]))
        for frame in frames
        if "event" in frame
    ]


async def submitted(client: httpx.AsyncClient) -> str:
    job_id: str = (await client.post("/v1/jobs", json=PATCHING)).json()["id"]
    return job_id


async def test_a_stream_starts_with_a_snapshot_and_ends_with_the_end(stand: Stand, client: httpx.AsyncClient) -> None:
    job_id = await submitted(client)
    claim = stand.claim()

    async def work() -> None:
        for done in (3, 7):
            await asyncio.sleep(0.02)
            stand.advance(claim, done)
        stand.succeed(claim, STORED)

    response, _ = await asyncio.gather(client.get(f"/v1/jobs/{job_id}/events"), work())
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-store"
    assert response.text.startswith("retry: ")
    events = received(response.text)
    assert [event.event for event in events] == ["running", "running", "running", "succeeded"]
    assert [event.job.progress.done for event in events] == [0, 3, 7, 7]
    assert all(event.job.id == job_id for event in events)
    ids = [int(event.id) for event in events]
    assert ids == sorted(set(ids))


async def test_new_tokens_come_as_events_of_their_own(stand: Stand, client: httpx.AsyncClient) -> None:
    job_id = await submitted(client)
    claim = stand.claim()
    tokens = NewTokens(prompt=0, strength=2.0, first=3, tokens=(7, 8), strings=(" a", " b"), log_probs=(-1.0, -2.0))

    async def work() -> None:
        await asyncio.sleep(0.02)
        stand.store.progress(claim, JobProgress(done=1, planned=9), [tokens])
        await asyncio.sleep(0.02)
        stand.succeed(claim, STORED)

    response, _ = await asyncio.gather(client.get(f"/v1/jobs/{job_id}/events"), work())
    frames = [
        dict(line.split(": ", 1) for line in frame.splitlines()) for frame in response.text.split("\n\n") if frame
    ]
    named = {frame["event"]: frame["data"] for frame in frames if "event" in frame}
    assert list(named) == ["running", "tokens", "succeeded"]
    news = JobTokens.model_validate_json(named["tokens"])
    assert (news.id, news.status, news.tokens) == (job_id, "running", (tokens,))


async def test_a_stream_resumes_after_the_last_event_seen(stand: Stand, client: httpx.AsyncClient) -> None:
    job_id = await submitted(client)
    claim = stand.claim()
    for done in (1, 2, 3):
        stand.advance(claim, done)
    stand.succeed(claim, STORED)
    whole = received((await client.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": "0"})).text)
    seen = whole[-3].id
    rest = received((await client.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": seen})).text)
    assert [event.id for event in rest] == [event.id for event in whole[-2:]]


async def test_an_ended_job_gives_its_end_at_once_and_nothing_after_it(stand: Stand, client: httpx.AsyncClient) -> None:
    job_id = await submitted(client)
    stand.succeed(stand.claim(), STORED)
    (end,) = received((await client.get(f"/v1/jobs/{job_id}/events")).text)
    assert end.event == "succeeded"
    again = await client.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": end.id})
    assert again.status_code == 204, "204 tells a browser's EventSource to stop coming back"


@pytest.mark.parametrize("last_event_id", ["abc", "-1", "1" * 30, "1; drop", "\x7f"])
async def test_an_event_id_of_another_making_starts_over_with_a_snapshot(
    stand: Stand, client: httpx.AsyncClient, last_event_id: str
) -> None:
    assert resume_point(last_event_id) is None
    job_id = await submitted(client)
    stand.succeed(stand.claim(), STORED)
    response = await client.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": last_event_id})
    assert len(received(response.text)) == 1


def summary(status: JobStatus) -> JobSummary:
    return JobSummary.model_validate(
        {
            "id": "job_" + "a" * 26,
            "kind": "patching",
            "model": "tiny",
            "status": status,
            "label": None,
            "metadata": {},
            "created_at": "2026-01-01T00:00:00Z",
            "started_at": None,
            "finished_at": None,
            "expires_at": None,
            "attempt": 0,
            "progress": {"done": 0, "planned": 0},
            "cached": False,
            "error": None,
        }
    )


async def always() -> bool:
    return True


async def nowhere() -> int | None:
    return None


async def slow_events(pause_s: float) -> AsyncGenerator[JobEvent, None]:
    yield JobEvent("1", summary(JobStatus.RUNNING))
    await asyncio.sleep(pause_s)
    yield JobEvent("2", summary(JobStatus.SUCCEEDED))


async def test_an_idle_stream_is_kept_alive_by_comments() -> None:
    frames = [frame async for frame in stream(slow_events(0.1), asyncio.Event(), always, nowhere, keep_alive_s=0.02)]
    assert frames.count(b": keep-alive\n\n") >= 2
    assert frames[-1].startswith(b"id: 2\nevent: succeeded\n")


async def test_a_queued_jobs_event_comes_again_whenever_its_place_has_changed() -> None:
    async def waits() -> AsyncGenerator[JobEvent, None]:
        yield JobEvent("1", summary(JobStatus.QUEUED))
        await asyncio.sleep(60)

    places = iter([7, 7, 3, 3])

    async def place() -> int | None:
        return next(places, None)

    frames: list[bytes] = []
    async with asyncio.timeout(5):
        async for frame in stream(waits(), asyncio.Event(), always, place, keep_alive_s=0.01):
            frames.append(frame)
            if len(frames) == 7:
                break
    events = received(b"".join(frames).decode())
    assert [(event.id, event.event, event.job.queued_ahead) for event in events] == [
        ("1", "queued", 7),
        ("1", "queued", 3),
    ]
    assert [frame == b": keep-alive\n\n" for frame in frames[1:]] == [False, True, False, True, True, True]


async def test_a_snapshot_of_a_queued_job_says_how_many_are_ahead(stand: Stand, client: httpx.AsyncClient) -> None:
    job_ids = [await submitted(client) for _ in range(2)]

    async def work() -> None:
        for _ in range(2):
            await asyncio.sleep(0.02)
            stand.succeed(stand.claim(), STORED)

    async def follow(job_id: str) -> Sequence[Received]:
        return received((await client.get(f"/v1/jobs/{job_id}/events")).text)

    first, second, _ = await asyncio.gather(follow(job_ids[0]), follow(job_ids[1]), work())
    for events, ahead in ((first, 0), (second, 1)):
        assert [(event.event, event.job.queued_ahead) for event in events] == [
            ("queued", ahead),
            ("running", None),
            ("succeeded", None),
        ]


async def test_a_stopping_gateway_ends_its_streams() -> None:
    closing, events = asyncio.Event(), slow_events(60)
    frames: list[bytes] = []
    async with asyncio.timeout(5):
        async for frame in stream(events, closing, always, nowhere):
            frames.append(frame)
            closing.set()
    assert frames[0].startswith(b"retry: ")
    with pytest.raises(StopAsyncIteration):
        await anext(events)


async def test_leaving_a_stream_stops_watching_the_job() -> None:
    events = slow_events(60)
    frames = stream(events, asyncio.Event(), always, nowhere)
    await anext(frames)
    await anext(frames)
    await frames.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(events)


async def test_a_stream_ends_at_its_next_keep_alive_once_its_key_is_revoked() -> None:
    valid = True

    async def is_valid() -> bool:
        return valid

    frames = []
    async with asyncio.timeout(5):
        async for frame in stream(slow_events(60), asyncio.Event(), is_valid, nowhere, keep_alive_s=0.02):
            frames.append(frame)
            valid = frame != b": keep-alive\n\n"
    assert frames[-1] == b": keep-alive\n\n"
    assert not any(b"succeeded" in frame for frame in frames)


async def test_a_busy_stream_ends_too_once_its_key_is_revoked() -> None:
    async def busy() -> AsyncGenerator[JobEvent, None]:
        while True:
            await asyncio.sleep(0.005)
            yield JobEvent("1", summary(JobStatus.RUNNING))

    asked = 0

    async def is_valid() -> bool:
        nonlocal asked
        asked += 1
        return asked < 3

    async with asyncio.timeout(5):
        frames = [frame async for frame in stream(busy(), asyncio.Event(), is_valid, nowhere, keep_alive_s=0.02)]
    assert asked == 3
    assert len(frames) > 3


async def test_an_open_stream_ends_soon_after_its_key_is_revoked(stand: Stand) -> None:
    plaintext = stand.key("alice")
    async with asyncio.timeout(5), stand.client(plaintext, stand.app_with(keep_alive_s=0.02)) as client:
        job_id = await submitted(client)
        following = asyncio.create_task(client.get(f"/v1/jobs/{job_id}/events"))
        await asyncio.sleep(0.2)
        assert not following.done()
        stand.keys.delete(plaintext.split("_")[1])
        events = received((await following).text)
    assert [event.event for event in events] == ["queued"]


async def test_only_what_would_open_now_may_go_on_following(stand: Stand) -> None:
    _, key = new_key("alice", "test", tuple(Scope))
    assert not await still_valid(stand.services, key)
    stand.keys.put(key)
    assert await still_valid(stand.services, key)
    stand.keys.put(key.model_copy(update={"expires_at": datetime.now(UTC) - timedelta(seconds=1)}))
    assert not await still_valid(stand.services, key)
    for overlap_s, is_good in ((60, True), (0, False)):
        _, fresh = rotated(key, timedelta(seconds=overlap_s))
        stand.keys.put(fresh)
        assert await still_valid(stand.services, key) is is_good
        assert await still_valid(stand.services, fresh)
