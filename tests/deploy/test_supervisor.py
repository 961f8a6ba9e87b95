"""The supervisor, on small real processes."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from deploy.local.errors import LaunchError
from deploy.local.supervisor import Child, Supervisor
from tests.processes import eventually, has_ended

SLEEP = "import time; print('up', flush=True); time.sleep(600)"
DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"


class Lines:
    """Collects what the children and the supervisor say."""

    def __init__(self) -> None:
        self.all: list[tuple[str, str]] = []

    def __call__(self, name: str, line: str) -> None:
        self.all.append((name, line))

    def of(self, name: str) -> list[str]:
        return [line for who, line in self.all if who == name]


@pytest.fixture
def lines() -> Lines:
    return Lines()


@pytest.fixture
def supervisor(lines: Lines) -> Iterator[Supervisor]:
    with Supervisor(lines) as running:
        yield running


def child(tmp_path: Path, name: str, program: str, grace_s: float = 5) -> Child:
    argv = (sys.executable, "-c", program)
    pid_file = tmp_path / f"{name}.pid"
    return Child(name=name, argv=argv, cwd=tmp_path, env=dict(os.environ), pid_file=pid_file, grace_s=grace_s)


def pid_of(tmp_path: Path, name: str) -> int:
    return int((tmp_path / f"{name}.pid").read_text())


def test_lines_of_a_child_are_passed_on_under_its_name(supervisor: Supervisor, lines: Lines, tmp_path: Path) -> None:
    supervisor.keep(child(tmp_path, "worker", f"import sys; print('to stderr', file=sys.stderr); {SLEEP}"))
    assert eventually(lambda: len(lines.of("worker")) == 2)
    assert set(lines.of("worker")) == {"to stderr", "up"}


def test_a_killed_child_is_started_again_and_the_log_says_so(
    supervisor: Supervisor, lines: Lines, tmp_path: Path
) -> None:
    supervisor.keep(child(tmp_path, "worker", SLEEP))
    assert eventually(lambda: lines.of("worker") == ["up"])
    psutil.Process(pid_of(tmp_path, "worker")).kill()
    assert eventually(lambda: lines.of("worker") == ["up", "up"])
    assert lines.of("lensd") == ["worker ended unasked (killed by SIGKILL): starting it again in 0.5 s"]


def test_a_child_that_keeps_ending_is_started_ever_more_slowly_and_is_not_waited_for(
    supervisor: Supervisor, lines: Lines, tmp_path: Path
) -> None:
    supervisor.keep(child(tmp_path, "gateway", "raise SystemExit(3)"))
    with pytest.raises(LaunchError, match="gateway ended 3 times at its start"):
        supervisor.wait_until(lambda: "the gateway is not up", timeout_s=30)
    assert [line.rpartition(" in ")[2] for line in lines.of("lensd")] == ["0.5 s", "1 s", "2 s"]
    assert "exit code 3" in lines.of("lensd")[0]


def test_what_never_gets_ready_is_named_at_the_timeout(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.keep(child(tmp_path, "gateway", SLEEP))
    with pytest.raises(LaunchError, match=r"not ready after 0 s: no worker has announced itself"):
        supervisor.wait_until(lambda: "no worker has announced itself", timeout_s=0.2)


def test_children_end_in_the_reverse_order_of_their_start(lines: Lines, tmp_path: Path) -> None:
    farewell = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: (time.sleep(.3), print('bye'), sys.exit())"
        f"); {SLEEP}"
    )
    with Supervisor(lines) as supervisor:
        for name in ("valkey", "gateway", "worker"):
            supervisor.keep(child(tmp_path, name, farewell))
        assert eventually(lambda: len(lines.all) == 3)
    assert [name for name, line in lines.all if line == "bye"] == ["worker", "gateway", "valkey"]
    assert not list(tmp_path.glob("*.pid"))


def test_a_child_that_will_not_end_is_killed_after_its_grace(lines: Lines, tmp_path: Path) -> None:
    with Supervisor(lines) as supervisor:
        supervisor.keep(child(tmp_path, "worker", DEAF, grace_s=0.3))
        assert eventually(lambda: lines.of("worker"))
        pid = pid_of(tmp_path, "worker")
    assert has_ended(pid)
    assert lines.of("lensd") == ["worker still ran 0.3 s after it was asked to end: killing it"]


def test_what_a_child_left_running_ends_with_it(lines: Lines, tmp_path: Path) -> None:
    starts_another = (
        f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {DEAF!r}]).pid, flush=True); {SLEEP}"
    )
    with Supervisor(lines) as supervisor:
        supervisor.keep(child(tmp_path, "worker", starts_another))
        assert eventually(lambda: lines.of("worker").count("up") == 2)
        grandchild = next(int(line) for line in lines.of("worker") if line.isdigit())
    assert eventually(lambda: has_ended(grandchild))


def test_a_child_in_its_backoff_is_not_started_again_once_the_stack_ends(lines: Lines, tmp_path: Path) -> None:
    with Supervisor(lines) as supervisor:
        supervisor.keep(child(tmp_path, "gateway", "print('up')"))
        assert eventually(lambda: lines.of("lensd"))
    time.sleep(0.8)
    assert lines.of("gateway") == ["up"]
