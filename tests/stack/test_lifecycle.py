"""The one-command stack: it heals, it refuses a twin, and it leaves nothing behind."""

import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from services.adapters.embedded_valkey import free_port
from tests.processes import eventually
from tests.stack.harness import CHILDREN, RunningStack, all_end, end, launch, lend_prepared_models, running_stack

WAIT_S = 90
CLEAN = "When John and Mary went to the shops, John gave the bag to"
CORRUPTED = "When John and Mary went to the shops, Mary gave the bag to"
SWEEP = {
    "kind": "patching",
    "model": "smollm2-135m",
    "method": {"type": "activation_patching", "site": "resid_pre", "layers": [0, 5, 10, 15, 20, 25]},
    "pairs": [{"clean": CLEAN, "corrupted": CORRUPTED, "answer": " Mary", "foil": " John"}],
}
SMALL = {
    "kind": "attribution",
    "model": "smollm2-135m",
    "method": {"type": "direct_logit_attribution"},
    "examples": [{"prompt": CLEAN, "answer": " Mary", "foil": " John"}],
    "cache": False,
}


@pytest.fixture(scope="module")
def own_stack(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """A stack that these tests may hurt."""
    with running_stack(tmp_path_factory.mktemp("lifecycle"), store=home) as running:
        yield running


def refused(home: Path, tmp_path: Path, **environment: str) -> list[str]:
    """The lines of a launcher that is expected to refuse to run, with exit code 1."""
    log_file = tmp_path / "refused.log"
    launcher = launch(home, log_file, **environment)
    try:
        assert launcher.wait(60) == 1
    finally:
        end(launcher)
    return log_file.read_text().splitlines()


def test_a_ready_stack_tells_where_it_is(own_stack: RunningStack) -> None:
    assert f"{own_stack.base_url}/docs" in own_stack.output
    assert own_stack.api_key not in own_stack.output


def test_the_operators_command_finds_the_running_stack(own_stack: RunningStack) -> None:
    command = [str(Path(sys.executable).with_name("lensd")), "keys", "list"]
    keys = subprocess.run(command, env={"LENSD_HOME": str(own_stack.home)}, capture_output=True, text=True, check=True)
    assert "bootstrap" in keys.stdout


def test_a_second_stack_on_the_same_data_is_refused_in_one_line(own_stack: RunningStack, tmp_path: Path) -> None:
    (line,) = refused(own_stack.home, tmp_path, LENSD_PORT=str(free_port()))
    assert line.startswith(f"lensd: lensd already runs on {own_stack.home} (process {own_stack.launcher.pid})")


def test_a_taken_port_is_refused_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        lines = refused(tmp_path / "home", tmp_path, LENSD_PORT=str(port))
    assert len(lines) == 1
    assert lines[0].startswith(f"lensd: cannot listen on 127.0.0.1 port {port}")
    assert lines[0].endswith("set LENSD_PORT to a free port")


def test_a_setting_that_makes_no_sense_is_refused_by_name(tmp_path: Path) -> None:
    (line,) = refused(tmp_path / "home", tmp_path, LENSD_PORT="many")
    assert line.startswith("lensd: LENSD_PORT: ")


@pytest.mark.parametrize("child", CHILDREN)
def test_a_killed_child_comes_back_and_the_stack_serves_again(own_stack: RunningStack, child: str) -> None:
    before = own_stack.kill(child)
    assert eventually(lambda: f"{child} ended unasked (killed by SIGKILL)" in own_stack.output)
    assert eventually(lambda: child_pid(own_stack, child) not in {None, before})
    assert eventually(own_stack.is_ready, WAIT_S), own_stack.output
    with own_stack.client() as client:
        location = client.post("/v1/jobs", json=SMALL).headers["Location"]
        assert eventually(lambda: status(client, location) == "succeeded", WAIT_S), own_stack.output


def status(client: httpx.Client, location: str) -> str:
    job: dict[str, str] = client.get(location).json()
    return job["status"]


def child_pid(stack: RunningStack, child: str) -> int | None:
    try:
        return stack.pid(child)
    except (FileNotFoundError, ValueError):
        return None


def test_sigterm_drains_and_leaves_no_process_behind(own_stack: RunningStack) -> None:
    pids = own_stack.pids()
    own_stack.launcher.terminate()
    assert own_stack.launcher.wait(60) == 0
    assert all_end(pids, within_s=0.5)
    assert "killing it" not in own_stack.output
    assert not list((own_stack.home / "run").glob("*.pid"))


def test_a_killed_launcher_takes_its_children_along_and_its_successor_finishes_their_job(
    home: Path, tmp_path: Path
) -> None:
    with running_stack(tmp_path, store=home) as first, first.client() as client:
        location = client.post("/v1/jobs", json=SWEEP).headers["Location"]
        assert eventually(lambda: status(client, location) == "running", WAIT_S)
        pids = first.pids()
        first.launcher.kill()
        first.launcher.wait()
        assert all_end(pids)
    with running_stack(tmp_path, store=home) as second, second.client() as client:
        client.headers["Authorization"] = f"Bearer {first.api_key}"
        assert eventually(lambda: status(client, location) == "succeeded", 2 * WAIT_S), client.get(location).text


def test_without_a_terminal_the_first_key_is_in_a_private_file_and_works(home: Path, tmp_path: Path) -> None:
    with running_stack(tmp_path, store=home, LENSD_BOOTSTRAP_KEY="") as stack, stack.client() as client:
        key_file = tmp_path / "api-key"
        assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
        assert key_file.read_text().strip() not in stack.output
        client.headers["Authorization"] = f"Bearer {key_file.read_text().strip()}"
        assert client.get("/v1/models").status_code == httpx.codes.OK


def test_a_command_runs_beside_a_stack_that_ends_with_it(home: Path, tmp_path: Path) -> None:
    own, log = tmp_path / "home", tmp_path / "launcher.log"
    lend_prepared_models(home, own)
    asks = "import httpx, os, sys; answer = httpx.get(os.environ['LENSD_URL'] + '/v1/models', trust_env=False, "
    asks += "headers={'Authorization': 'Bearer ' + os.environ['LENSD_KEY']}); print(answer.text); sys.exit(7)"
    launcher = launch(own, log, "run", sys.executable, "-c", asks, LENSD_PORT=str(free_port()))
    try:
        assert launcher.wait(2 * WAIT_S) == 7
    finally:
        end(launcher)
    assert '"smollm2-135m"' in log.read_text()
    assert list((own / "run").glob("*.pid")) == []
