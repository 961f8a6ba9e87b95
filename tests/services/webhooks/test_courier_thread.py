"""The courier on a thread of its own."""

import time
from collections.abc import Mapping

from services.webhooks.courier import Courier
from services.webhooks.courier_thread import CourierThread
from services.webhooks.poster import Reply
from tests.processes import eventually
from tests.services.webhooks.bench import Bench


class AcceptingPoster:
    def __init__(self) -> None:
        self.sent: list[str] = []

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Reply:
        del url, body
        self.sent.append(headers["webhook-id"])
        return Reply(status=200)


def test_it_delivers_until_it_is_stopped(bench: Bench) -> None:
    endpoint = bench.endpoint()
    poster = AcceptingPoster()
    thread = CourierThread(Courier(bench.deliveries, bench.webhooks, bench.jobs, poster))
    thread.start()
    try:
        jobs = [bench.cancelled(endpoint) for _ in range(20)]
        assert eventually(lambda: bench.deliveries.waiting("ada") == 0)
        assert sorted(poster.sent) == sorted("msg_" + job_id[4:] for job_id in jobs)
    finally:
        thread.stop()
    bench.cancelled(endpoint)
    time.sleep(1)
    assert len(poster.sent) == 20


def test_two_couriers_share_the_work_and_tell_nothing_twice(bench: Bench) -> None:
    endpoints = [bench.endpoint(f"owner{number}") for number in range(4)]
    posters = [AcceptingPoster(), AcceptingPoster()]
    threads = [CourierThread(Courier(bench.deliveries, bench.webhooks, bench.jobs, poster)) for poster in posters]
    jobs = [bench.cancelled(endpoint) for endpoint in endpoints for _ in range(40)]
    for thread in threads:
        thread.start()
    try:
        assert eventually(lambda: sum(bench.deliveries.waiting(endpoint.owner) for endpoint in endpoints) == 0, 30)
    finally:
        for thread in threads:
            thread.stop()
    assert sorted(posters[0].sent + posters[1].sent) == sorted("msg_" + job_id[4:] for job_id in jobs)


def test_it_can_be_stopped_at_once(bench: Bench) -> None:
    thread = CourierThread(Courier(bench.deliveries, bench.webhooks, bench.jobs, AcceptingPoster()))
    thread.start()
    thread.stop()
    assert not thread._thread.is_alive()
