"""Gateway and worker as in production: the store behind TLS and an access control list, JSON logs.

What they log is read whole: it has the ids to follow a request and a job by, and nothing that a client sent.
"""

import base64
import json
import os
import pickle
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from redis import Redis

from deploy.local.stack import GATEWAY, WORKER
from services.adapters.embedded_valkey import free_port
from services.adapters.parent_death import dies_with_parent
from services.tenants.keys import Scope, new_key
from tests.processes import eventually
from tests.remote_control import WITNESS, ping_and_shut_down
from tests.services.adapters.valkey import ACL_RULES, restricted, valkey_server
from tests.stack.harness import PROJECT_ROOT, READY_TIMEOUT_S, lend_prepared_models
from tests.tls import Authority, make_authority, tls_in_front_of

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made by openssl")

MARKER = "xyzzyplugh"
"""Where a client can put a text, it puts this."""
WAIT = {"Prefer": "wait=60"}
RETENTION = timedelta(hours=50)


@dataclass
class Hardened:
    client: httpx.Client
    store: Redis
    """As the server's administrator, not by way of TLS."""
    store_url: str
    gateway_log: Path
    worker: "subprocess.Popen[bytes]"
    worker_log: Path
    metrics: tuple[str, str]
    """Where the figures of the gateway and of the worker are."""
    secrets: tuple[str, ...]

    def lines(self, log: Path) -> list[dict[str, Any]]:
        return [json.loads(line) for line in log.read_text().splitlines()]

    def submit(self, **changes: Any) -> httpx.Response:
        return self.client.post("/v1/jobs", json=job(**changes), headers=WAIT)


def job(**changes: Any) -> dict[str, Any]:
    return {
        "kind": "attribution",
        "model": "induction-2l",
        "method": {"type": "direct_logit_attribution"},
        "examples": [{"prompt": "t5 t9 t12 t5", "answer": " t9", "foil": " t12"}],
        "cache": False,
        **changes,
    }


@contextmanager
def process(command: tuple[str, ...], environment: dict[str, str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    with log.open("wb") as lines:
        child = subprocess.Popen(
            dies_with_parent(command),
            cwd=PROJECT_ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=lines,
            stderr=subprocess.STDOUT,
        )
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def environment_of(home: Path, url: str, authority: Authority, port: int, key: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LENSD_")}
    return inherited | {
        "LENSD_HOME": str(home),
        "LENSD_PORT": str(port),
        "LENSD_REDIS_URL": url,
        "LENSD_REDIS_CA_FILE": str(authority.ca),
        "LENSD_REDIS_CERT_FILE": str(authority.client.cert),
        "LENSD_REDIS_KEY_FILE": str(authority.client.key),
        "LENSD_BOOTSTRAP_KEY": key,
        "LENSD_LOG_FORMAT": "json",
        "LENSD_LOG_LEVEL": "DEBUG",
        "LENSD_THREADS": "1",
        "LENSD_PRELOAD": "false",
        "LENSD_DRAIN_S": "0",
        "LENSD_RETENTION_H": str(RETENTION // timedelta(hours=1)),
        "OMP_WAIT_POLICY": "passive",
    }


@pytest.fixture(scope="module")
def hardened(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hardened]:
    folder = tmp_path_factory.mktemp("hardened")
    lend_prepared_models(home, folder / "home")
    authority, key = make_authority(folder / "tls"), new_key("tests", "tests", tuple(Scope))[0]
    with valkey_server(folder / "valkey") as server, Redis.from_url(server.url) as store:
        limited = urlsplit(restricted(server.url, ACL_RULES))
        assert limited.port is not None
        assert limited.password is not None
        with tls_in_front_of(limited.port, authority) as tls_port:
            url = f"rediss://lensd:{limited.password}@127.0.0.1:{tls_port}/0"
            port = free_port()
            ports = free_port(), free_port()
            environment = environment_of(folder / "home", url, authority, port, key) | {
                "LENSD_METRICS_PORT": str(ports[0]),
                "LENSD_WORKER_METRICS_PORT": str(ports[1]),
            }
            gateway_log, worker_log = folder / "gateway.log", folder / "worker.log"
            with (
                process(GATEWAY, environment, gateway_log),
                process(WORKER, environment, worker_log) as worker,
                httpx.Client(
                    base_url=f"http://127.0.0.1:{port}",
                    headers={"Authorization": f"Bearer {key}"},
                    timeout=90,
                    trust_env=False,
                ) as client,
            ):
                metrics = (f"http://127.0.0.1:{ports[0]}/metrics", f"http://127.0.0.1:{ports[1]}/metrics")
                secrets = (key.split("_", 2)[2], limited.password)
                running = Hardened(client, store, server.url, gateway_log, worker, worker_log, metrics, secrets)
                if not eventually(lambda: is_ready(client), READY_TIMEOUT_S):
                    raise AssertionError(gateway_log.read_text() + worker_log.read_text())
                yield running


def is_ready(client: httpx.Client) -> bool:
    with suppress(httpx.TransportError):
        return client.get("/readyz").is_success
    return False


def test_a_job_succeeds_and_nothing_that_was_needed_was_denied(hardened: Hardened) -> None:
    answer = hardened.submit()
    assert answer.json()["status"] == "succeeded", answer.text
    name = answer.headers["Location"]
    assert "event: succeeded" in hardened.client.get(f"{name}/events").text
    assert hardened.client.delete(name).status_code == httpx.codes.NO_CONTENT
    assert hardened.store.acl_log() == []


def test_a_pickle_put_into_the_broker_is_refused_and_the_worker_lives_on(hardened: Hardened, tmp_path: Path) -> None:
    proof = tmp_path / "unpickled"
    for content_type in ("application/x-python-serialize", "application/json"):
        hardened.store.lpush("lensd.default", message(pickle.dumps(Unpickled(str(proof))), content_type))
    assert eventually(lambda: hardened.store.llen("lensd.default") == 0)
    assert eventually(lambda: "ContentDisallowed" in hardened.worker_log.read_text())
    assert hardened.submit().json()["status"] == "succeeded"
    assert not proof.exists()
    assert hardened.worker.poll() is None


def test_a_worker_takes_no_remote_control(hardened: Hardened) -> None:
    heard = ping_and_shut_down(hardened.store_url)
    assert heard.commands[-1] == "shutdown"
    assert heard.answered == [WITNESS]
    assert not eventually(lambda: hardened.worker.poll() is not None, 2)
    assert hardened.submit().json()["status"] == "succeeded"


class Unpickled:
    """Creates a file when it is unpickled."""

    def __init__(self, proof: str) -> None:
        self._proof = proof

    def __reduce__(self) -> tuple[object, ...]:
        return open, (self._proof, "w")


def message(body: bytes, content_type: str) -> str:
    """What Celery's transport keeps in its list, for the task of doorbells."""
    properties = {
        "correlation_id": "1",
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": "lensd.default"},
        "priority": 0,
        "body_encoding": "base64",
        "delivery_tag": "tag",
    }
    return json.dumps(
        {
            "body": base64.b64encode(body).decode(),
            "content-encoding": "binary",
            "content-type": content_type,
            "headers": {"lang": "py", "task": "lensd.ring", "id": "1", "root_id": "1"},
            "properties": properties,
        }
    )


def test_nothing_that_a_client_sends_and_no_secret_gets_into_a_log(hardened: Hardened) -> None:
    client = hardened.client
    marked: dict[str, Any] = {"label": MARKER, "metadata": {MARKER: MARKER}}
    succeeded = client.post("/v1/jobs", json=job(**marked), headers={**WAIT, "Idempotency-Key": MARKER})
    assert succeeded.json()["status"] == "succeeded", succeeded.text
    refused = (
        hardened.submit(**marked, examples=[{"prompt": MARKER, "answer": MARKER, "foil": " t9"}]),
        hardened.submit(**{MARKER: MARKER}),
        client.post("/v1/jobs", content=f'{{"{MARKER}": ', headers={"Content-Type": "application/json"}),
        client.post("/v1/models/induction-2l/tokenize", json={"text": MARKER, MARKER: MARKER}),
        client.get("/v1/models", headers={"Authorization": f"Bearer lensd_aaaaaaaaaaaa_{MARKER:x<43}"}),
    )
    assert [answer.status_code // 100 for answer in refused] == [4] * len(refused)
    assert client.get("/v1/jobs", params={"label": MARKER}).json()["jobs"]
    late = client.post("/v1/jobs", json=job(**marked, deadline_s=0.001), headers=WAIT)
    assert late.json()["status"] == "failed", late.text
    damage(hardened, marked)
    for log in (hardened.gateway_log, hardened.worker_log):
        text = log.read_text()
        assert [secret for secret in (MARKER, *hardened.secrets) if secret in text] == []


def damage(hardened: Hardened, marked: dict[str, Any]) -> None:
    """A job whose inputs are damaged, texts and all, before the worker has it."""
    with frozen(hardened.worker):
        made = hardened.client.post("/v1/jobs", json=job(**marked)).json()
        hardened.store.hset(f"lensd:job:{made['id']}", "inputs", f'{{"{MARKER}": "{MARKER}"}}')
    ended = hardened.client.get(f"/v1/jobs/{made['id']}", headers=WAIT).json()
    assert ended["status"] == "failed", ended


@contextmanager
def frozen(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


def test_a_job_is_kept_for_as_long_as_the_operator_says_whichever_process_ends_it(hardened: Hardened) -> None:
    by_worker = hardened.submit().json()
    with frozen(hardened.worker):
        queued = hardened.client.post("/v1/jobs", json=job()).json()
        by_gateway = hardened.client.post(f"/v1/jobs/{queued['id']}/cancel").json()
    for ended, status in ((by_worker, "succeeded"), (by_gateway, "cancelled")):
        assert ended["status"] == status
        assert datetime.fromisoformat(ended["expires_at"]) - datetime.fromisoformat(ended["finished_at"]) == RETENTION


def test_both_processes_have_figures_for_prometheus(hardened: Hardened) -> None:
    assert hardened.submit().json()["status"] == "succeeded"
    gateway, worker = (httpx.get(url, trust_env=False).text for url in hardened.metrics)
    assert 'lensd_requests_total{method="POST",route="/v1/jobs",status="200"}' in gateway
    assert 'lensd_workers{pool="default"} 1.0' in gateway
    assert 'lensd_jobs_ended_total{kind="attribution",status="succeeded"}' in worker
    assert "lensd_token_layers_total" in worker
    assert MARKER not in gateway + worker


def test_every_line_is_json_and_has_the_ids_to_follow_a_request_and_a_job_by(hardened: Hardened) -> None:
    answer = hardened.client.post("/v1/jobs", json=job(), headers={**WAIT, "X-Request-Id": "follow-me"})
    name = answer.json()["id"]

    def followed() -> list[str]:
        return [line["job_id"] for line in requests(hardened) if line.get("request_id") == "follow-me"]

    assert eventually(lambda: followed() == [name]), "a line is written after its answer"
    assert [line["message"] for line in requests(hardened) if "request_id" not in line] == []
    assert eventually(lambda: len(told_of(hardened, name)) == 2)
    assert [line["message"] for line in told_of(hardened, name)] == [
        f"job {name}: attribution, attempt 1",
        f"job {name}: Succeeded",
    ]


def requests(hardened: Hardened) -> list[dict[str, Any]]:
    """What the gateway has logged of requests."""
    return [line for line in hardened.lines(hardened.gateway_log) if line["logger"] == "api.access"]


def told_of(hardened: Hardened, job_id: str) -> list[dict[str, Any]]:
    """What the worker has logged of a job."""
    return [line for line in hardened.lines(hardened.worker_log) if line.get("job_id") == job_id]
