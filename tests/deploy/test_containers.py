"""The container files say what matters: two lean images, nobody is root, nothing is open beyond the loopback."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from redis import Redis
from redis.exceptions import AuthenticationError
from redis.exceptions import ConnectionError as ConnectionFailed

from deploy.local.stack import GATEWAY, WORKER
from services.adapters.embedded_valkey import free_port, server_binary
from services.adapters.redis_client import check_server
from tests.processes import eventually

ROOT = Path(__file__).parents[2]
Instructions = list[tuple[str, str]]


def stages() -> dict[str, Instructions]:
    """The instructions of each stage of the Dockerfile, as (keyword, arguments)."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "deploy/Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    found: dict[str, Instructions] = {}
    current: Instructions = []
    for keyword, _, arguments in (line.strip().partition(" ") for line in lines if line.strip()):
        if keyword == "FROM":
            image, _, name = arguments.partition(" AS ")
            current = found[name] = [*found.get(image, [])]
        current.append((keyword, arguments.strip()))
    return found


@pytest.fixture(params=["gateway", "worker"])
def image(request: pytest.FixtureRequest) -> Instructions:
    name: str = request.param
    return stages()[name]


@pytest.fixture
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())
    return loaded


@pytest.fixture
def services(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    loaded: dict[str, dict[str, Any]] = compose["services"]
    return loaded


def test_images_end_as_a_numbered_user_that_is_not_root(image: Instructions) -> None:
    *_, user = (arguments for keyword, arguments in image if keyword == "USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)


def test_images_say_how_healthy_they_are(image: Instructions) -> None:
    (check,) = (arguments for keyword, arguments in image if keyword == "HEALTHCHECK")
    command = json.loads(check.partition("CMD ")[2])
    assert command[0] == "python"


@pytest.mark.parametrize(("name", "local"), [("gateway", GATEWAY), ("worker", WORKER)])
def test_the_images_run_what_the_local_stack_runs(name: str, local: tuple[str, ...]) -> None:
    (command,) = (arguments for keyword, arguments in stages()[name] if keyword == "CMD")
    module = json.loads(command)
    assert module[-len(local) + 2 :] == list(local[2:])


def test_the_base_image_is_pinned_to_a_patch_release() -> None:
    assert re.search(
        r"^ARG PYTHON_IMAGE=python:3\.11\.\d+-slim-\w+$", (ROOT / "deploy/Dockerfile").read_text(), re.MULTILINE
    )


def test_the_gateway_image_is_refused_when_torch_can_be_imported() -> None:
    gateway = [arguments for keyword, arguments in stages()["gateway"] if keyword == "RUN"]
    checks = [n for n, run in enumerate(gateway) if "find_spec('torch')" in run and "sys.exit('torch" in run]
    installs = [n for n, run in enumerate(gateway) if "pip install" in run]
    assert checks
    assert checks[-1] > installs[-1]


def test_everything_an_image_copies_is_there_and_reaches_the_build(image: Instructions) -> None:
    let_in = re.findall(r"^!(.+?)/?$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    sources = [source for keyword, arguments in image if keyword == "COPY" for source in arguments.split()[:-1]]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(source == path or source.startswith(f"{path}/") for path in let_in), source


def test_every_container_is_confined(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name


def test_only_the_gateway_is_published_and_only_on_the_loopback(services: dict[str, dict[str, Any]]) -> None:
    assert [name for name, service in services.items() if "ports" in service] == ["gateway"]
    assert all(port.startswith("127.0.0.1:") for port in services["gateway"]["ports"])


def test_valkey_and_worker_cannot_reach_the_world(compose: dict[str, Any], services: dict[str, dict[str, Any]]) -> None:
    assert compose["networks"]["inside"] == {"internal": True}
    assert services["valkey"]["networks"] == services["worker"]["networks"] == ["inside"]
    assert services["prepare"]["network_mode"] == "none"


def test_empty_secrets_are_refused() -> None:
    text = (ROOT / "deploy/compose.yaml").read_text()
    secrets = re.findall(r"\$\{(LENSD_\w*(?:PASSWORD|KEY))\b([^}]*)\}", text)
    assert {name for name, _ in secrets} == {"LENSD_VALKEY_PASSWORD", "LENSD_BOOTSTRAP_KEY"}
    assert all(rest.startswith(":?") for _, rest in secrets)


def test_images_are_pinned_or_built_here(services: dict[str, dict[str, Any]]) -> None:
    for name, service in services.items():
        assert "build" in service or re.search(r":\d+\.\d+\.\d+-", service["image"]), name


def test_what_must_outlive_a_container_is_on_a_volume(
    compose: dict[str, Any], services: dict[str, dict[str, Any]]
) -> None:
    for service in services.values():
        for mount in service["volumes"]:
            assert mount.partition(":")[0] in compose["volumes"]
    assert "valkey:/data" in services["valkey"]["volumes"]


def test_the_built_services_wait_for_valkey_and_for_the_models(services: dict[str, dict[str, Any]]) -> None:
    for name in ("gateway", "worker"):
        waits = {needed: how["condition"] for needed, how in services[name]["depends_on"].items()}
        assert waits == {"valkey": "service_healthy", "prepare": "service_completed_successfully"}
    assert services["valkey"]["healthcheck"]["test"]


@pytest.fixture
def composed_valkey(services: dict[str, dict[str, Any]], tmp_path: Path) -> Iterator[str]:
    """The Valkey of the compose file, run by the very shell script that the file has; gives its URL."""
    port = free_port()
    (script,) = services["valkey"]["command"]
    script = script.replace("$$", "$").replace("<<END\n", f"<<END\nport {port}\n")
    environment = {
        "PATH": f"{server_binary().parent}:{os.environ['PATH']}",
        "REDISCLI_AUTH": "a-password",
        "MAXMEMORY": "64mb",
    }
    command = [*services["valkey"]["entrypoint"], script]
    with subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL) as server:
        yield f"redis://:a-password@127.0.0.1:{port}/0"
        server.terminate()


def test_the_composed_valkey_keeps_what_it_is_told_and_wants_its_password(composed_valkey: str) -> None:
    def answers() -> bool:
        with Redis.from_url(composed_valkey) as client:
            try:
                return bool(client.ping())
            except ConnectionFailed:
                return False

    assert eventually(answers)
    with Redis.from_url(composed_valkey, decode_responses=True) as client:
        settings = client.config_get("appendonly", "appendfsync", "maxmemory", "maxmemory-policy")
        check_server(client)
    assert settings == {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory": str(64 * 2**20),
        "maxmemory-policy": "noeviction",
    }
    with Redis.from_url(composed_valkey.replace("a-password", "")) as stranger, pytest.raises(AuthenticationError):
        stranger.ping()
