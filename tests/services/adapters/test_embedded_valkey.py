"""The embedded Valkey: what is acknowledged is kept, nothing is open to others, and nothing is left behind."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from redis import Redis
from redis.exceptions import AuthenticationError, OutOfMemoryError

from services.adapters.directory_lock import DirectoryTakenError
from services.adapters.embedded_valkey import PORTS, EmbeddedValkey, running_valkey
from tests.processes import eventually, has_ended


def server_pid(run_dir: Path) -> int:
    return int((run_dir / "valkey.pid").read_text())


def test_what_was_written_is_there_after_the_server_was_killed(tmp_path: Path) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    with running_valkey(data, run) as valkey, Redis.from_url(valkey.url) as client:
        for n in range(500):
            client.set(f"key {n}", n)
        os.kill(server_pid(run), signal.SIGKILL)
    with running_valkey(data, run) as valkey, Redis.from_url(valkey.url) as client:
        assert client.dbsize() == 500


def test_it_listens_on_the_loopback_alone_and_outside_the_range_of_outgoing_connections(tmp_path: Path) -> None:
    with running_valkey(tmp_path / "data", tmp_path / "run"):
        server = psutil.Process(server_pid(tmp_path / "run"))
        (address,) = {c.laddr for c in server.net_connections("inet") if c.status == psutil.CONN_LISTEN}
        assert address.ip == "127.0.0.1"
        assert address.port in PORTS


def test_it_wants_its_password_which_only_private_files_hold(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with running_valkey(tmp_path / "data", run) as valkey:
        password = valkey.url.partition("//:")[2].partition("@")[0]
        assert len(password) >= 43
        assert not any(password in part for part in psutil.Process(server_pid(run)).cmdline())
        holders = {file.name for file in run.iterdir() if password in file.read_text()}
        assert holders == {"valkey.conf", "redis-url"}
        assert all(stat.S_IMODE((run / name).stat().st_mode) == 0o600 for name in holders)
        with Redis.from_url(valkey.url.replace(password, "guess")) as stranger, pytest.raises(AuthenticationError):
            stranger.ping()
    assert not any((run / name).exists() for name in holders)


def test_a_full_server_refuses_writes_and_evicts_nothing(tmp_path: Path) -> None:
    def fill(client: Redis) -> None:
        for n in range(1000):
            client.set(f"key {n}", b"x" * 65_536)

    with (
        running_valkey(tmp_path / "data", tmp_path / "run", maxmemory_bytes=8 * 2**20) as valkey,
        Redis.from_url(valkey.url) as client,
    ):
        with pytest.raises(OutOfMemoryError):
            fill(client)
        assert client.strlen("key 0") == 65_536


def test_a_second_server_on_the_same_data_is_refused(tmp_path: Path) -> None:
    with (
        running_valkey(tmp_path / "data", tmp_path / "run"),
        pytest.raises(DirectoryTakenError, match=f"in use by process {os.getpid()}"),
        running_valkey(tmp_path / "data", tmp_path / "other run"),
    ):
        pytest.fail("a second server started")


def test_a_server_that_runs_keeps_its_data_locked_when_its_starter_has_let_go(tmp_path: Path) -> None:
    with running_valkey(tmp_path / "data", tmp_path / "run") as valkey:
        valkey.__exit__(None, None, None)
        with pytest.raises(DirectoryTakenError), EmbeddedValkey(tmp_path / "data", tmp_path / "other run"):
            pytest.fail("the data directory was free")


def test_paths_with_quotes_and_spaces_are_fine(tmp_path: Path) -> None:
    data = tmp_path / 'an "odd" \\ name'
    with running_valkey(data, tmp_path / "run dir") as valkey, Redis.from_url(valkey.url) as client:
        client.set("key", 1)
    assert list(data.glob("appendonlydir/*.aof"))


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels have no parent-death signal")
def test_it_dies_with_a_starter_that_was_killed(tmp_path: Path) -> None:
    program = (
        "import time, sys; from pathlib import Path; from services.adapters.embedded_valkey import running_valkey\n"
        "with running_valkey(Path(sys.argv[1]), Path(sys.argv[2])): print('up', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "data"), str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as starter:
        assert starter.stdout is not None
        assert starter.stdout.readline() == b"up\n"
        server = server_pid(tmp_path / "run")
        starter.kill()
    assert eventually(lambda: has_ended(server))
    with EmbeddedValkey(tmp_path / "data", tmp_path / "run"):
        pass
