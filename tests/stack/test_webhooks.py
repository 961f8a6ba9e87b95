"""Messages from real gateway processes to a real receiver: whatever dies, every end is told, under one name each."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.adapters.embedded_valkey import free_port
from services.adapters.parent_death import dies_with_parent
from services.tenants.keys import Scope, new_key
from services.webhooks.signing import signed_headers
from tests.api.catalogue import write_catalogue
from tests.api.specs import PATCHING
from tests.processes import eventually
from tests.receiver import Answer, Received, Receiver, running_receiver
from tests.services.adapters.valkey import Server, valkey_server

PROJECT = Path(__file__).parents[2]
WITHIN_S = 60
"""A lease of twenty-five seconds, and all that a busy machine adds."""


@dataclass
class Gateway:
    """A gateway process on a store that outlives it."""

    home: Path
    environment: dict[str, str]
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.environment['LENSD_PORT']}"

    def start(self) -> None:
        with (self.home / "gateway.log").open("ab") as log:
            self.process = subprocess.Popen(
                dies_with_parent([sys.executable, "-m", "api"]),
                cwd=PROJECT,
                env={name: value for name, value in os.environ.items() if not name.startswith("LENSD_")}
                | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        assert eventually(self.answers, WITHIN_S), (self.home / "gateway.log").read_text()

    def answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/livez", timeout=2, trust_env=False).is_success
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def client(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.environment['LENSD_BOOTSTRAP_KEY']}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30, trust_env=False)


@contextmanager
def running_gateway(server: Server, home: Path, receiver: Receiver) -> Iterator[Gateway]:
    write_catalogue(home)
    environment = {
        "LENSD_HOME": str(home),
        "LENSD_PORT": str(free_port()),
        "LENSD_REDIS_URL": server.url,
        "LENSD_BOOTSTRAP_KEY": new_key("tests", "tests", tuple(Scope))[0],
        "LENSD_WEBHOOK_HOSTS": f"127.0.0.1:{receiver.port}",
    }
    gateway = Gateway(home, environment)
    try:
        gateway.start()
        yield gateway
    finally:
        gateway.end()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with running_receiver() as receiver:
        yield receiver


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with valkey_server(tmp_path / "valkey") as server:
        yield server


@pytest.fixture
def gateway(server: Server, tmp_path: Path, receiver: Receiver) -> Iterator[Gateway]:
    with running_gateway(server, tmp_path / "home", receiver) as gateway:
        yield gateway


def registered(client: httpx.Client, receiver: Receiver) -> dict[str, Any]:
    endpoint: dict[str, Any] = client.post("/v1/webhooks", json={"url": receiver.url()}).raise_for_status().json()
    return endpoint


def ended_job(client: httpx.Client, endpoint: dict[str, Any]) -> str:
    """A job that has ended, without a worker: it was cancelled in line."""
    job = client.post("/v1/jobs", json={**PATCHING, "webhook": endpoint["id"]}).raise_for_status().json()
    client.post(f"/v1/jobs/{job['id']}/cancel").raise_for_status()
    job_id: str = job["id"]
    return job_id


def genuine(received: Received, secret: str) -> bool:
    """Whether the signature is that of the receiver's own secret."""
    at = datetime.fromtimestamp(int(received.headers["webhook-timestamp"]), UTC)
    headers = signed_headers(received.headers["webhook-id"], at, received.body, [secret])
    return headers.items() <= received.headers.items()


def told(receiver: Receiver) -> list[str]:
    """The jobs that messages were about, in the order of their coming."""
    return [json.loads(received.body)["data"]["id"] for received in list(receiver.received)]


def test_every_end_is_told_once_and_signed_when_nothing_dies(gateway: Gateway, receiver: Receiver) -> None:
    with gateway.client() as client:
        endpoint = registered(client, receiver)
        jobs = [ended_job(client, endpoint) for _ in range(20)]
        assert eventually(lambda: set(told(receiver)) == set(jobs), WITHIN_S)
        assert eventually(lambda: len(client.get(f"/v1/webhooks/{endpoint['id']}").json()["deliveries"]) == 20)
    assert sorted(told(receiver)) == sorted(jobs)
    assert all(genuine(received, endpoint["secret"]) for received in receiver.received)
    assert {json.loads(received.body)["type"] for received in receiver.received} == {"job.cancelled"}


def test_a_job_that_a_worker_ran_is_told_with_its_summary(client: httpx.Client, receiver: Receiver) -> None:
    endpoint = registered(client, receiver)
    try:
        prompt = {"prompt": "The Eiffel Tower is in", "answer": " Paris"}
        method = {"type": "direct_logit_attribution"}
        spec = {"kind": "attribution", "model": "smollm2-135m", "method": method, "metric": {"type": "logit"}}
        job = client.post("/v1/jobs", json={**spec, "examples": [prompt], "webhook": endpoint["id"]}).json()
        assert eventually(lambda: told(receiver) == [job["id"]], 2 * WITHIN_S)
        (received,) = receiver.received
        assert genuine(received, endpoint["secret"])
        summary = client.get(f"/v1/jobs/{job['id']}").json()
        for of_the_document_alone in ("result", "queued_ahead"):
            del summary[of_the_document_alone]
        message = json.loads(received.body)
        assert message == {"type": "job.succeeded", "timestamp": summary["finished_at"], "data": summary}
    finally:
        client.delete(f"/v1/webhooks/{endpoint['id']}")


def test_a_batch_that_ended_is_told_of_once_with_its_counts(client: httpx.Client, receiver: Receiver) -> None:
    endpoint = registered(client, receiver)
    try:
        example = {"prompt": "The Colosseum is in", "answer": " Rome"}
        method = {"type": "direct_logit_attribution"}
        spec = {"kind": "attribution", "model": "smollm2-135m", "method": method, "metric": {"type": "logit"}}
        jobs = [{**spec, "examples": [example]}, {**spec, "examples": [example], "metric": {"type": "probability"}}]
        lines = [{"custom_id": str(number), "job": job} for number, job in enumerate(jobs)]
        upload = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        query, headers = {"webhook": endpoint["id"], "on_invalid": "report"}, {"Content-Type": "application/jsonl"}
        posted = client.post("/v1/batches", params=query, content=upload, headers=headers).raise_for_status()
        assert eventually(lambda: told(receiver) == [posted.json()["id"]], 2 * WITHIN_S)
        (received,) = receiver.received
        assert genuine(received, endpoint["secret"])
        batch = client.get(posted.headers["Location"]).json()
        shown = {name: batch[name] for name in ("id", "label", "status", "counts", "finished_at")}
        message = json.loads(received.body)
        assert message == {"type": "batch.ended", "timestamp": shown["finished_at"], "data": shown}
        assert (shown["counts"]["succeeded"], shown["counts"]["invalid"]) == (1, 1)
    finally:
        client.delete(f"/v1/webhooks/{endpoint['id']}")


def test_a_gateway_killed_between_post_and_settling_leaves_the_message_to_its_successor(
    gateway: Gateway, receiver: Receiver
) -> None:
    def kill_at_first(received: Received) -> Answer:
        del received
        if len(receiver.received) == 1:
            gateway.kill()
        return Answer(204)

    receiver.answer = kill_at_first
    with gateway.client() as client:
        job_id = ended_job(client, registered(client, receiver))
        assert eventually(lambda: len(receiver.received) == 1, WITHIN_S)
    gateway.end()
    gateway.start()
    assert eventually(lambda: len(receiver.received) == 2, WITHIN_S)
    first, second = receiver.received
    assert first.headers["webhook-id"] == second.headers["webhook-id"] == "msg_" + job_id[4:]
    assert first.body == second.body


def test_a_receiver_that_is_down_and_a_store_that_dies_cost_no_message(
    gateway: Gateway, receiver: Receiver, server: Server
) -> None:
    receiver.answer = lambda _: Answer(503)
    with gateway.client() as client:
        endpoint = registered(client, receiver)
        jobs = [ended_job(client, endpoint) for _ in range(5)]
        assert eventually(lambda: set(told(receiver)) == set(jobs), WITHIN_S)
        assert eventually(lambda: len(client.get(f"/v1/webhooks/{endpoint['id']}").json()["deliveries"]) == 5)
        server.stop()
        server.start()
        receiver.received.clear()
        receiver.answer = lambda _: Answer(204)
        assert eventually(lambda: set(told(receiver)) == set(jobs), WITHIN_S)
