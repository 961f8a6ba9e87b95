"""The launcher's settings, log and first key."""

import io
import os
import signal
import stat
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from deploy.local.logs import StreamLog
from deploy.local.settings import LocalSettings
from deploy.local.signals import ended_by_signals
from services.tenants.handover import hand_over


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_paths_mean_the_same_to_children_in_another_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LENSD_HOME", "data")
    monkeypatch.setenv("LENSD_CATALOGUE", "my.toml")
    settings = LocalSettings()
    assert settings.home == tmp_path / "data"
    assert settings.catalogue == tmp_path / "my.toml"


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:9000"),
        ("0.0.0.0", "http://127.0.0.1:9000"),
        ("::", "http://[::1]:9000"),
        ("lab.example", "http://lab.example:9000"),
    ],
)
def test_the_url_is_one_that_this_machine_can_open(host: str, url: str) -> None:
    assert LocalSettings(host=host, port=9000).base_url == url


def test_a_port_that_no_machine_has_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENSD_PORT", "70000")
    with pytest.raises(ValidationError, match="65535"):
        LocalSettings()


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENSD_BOOTSTRAP_KEY", "")
    assert LocalSettings().bootstrap_key is None


def test_lines_are_coloured_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal, pipe = Terminal(), io.StringIO()
    StreamLog(terminal)("worker", "ready")
    StreamLog(pipe)("worker", "ready")
    assert terminal.getvalue() == "\x1b[32mworker   |\x1b[0m ready\n"
    assert pipe.getvalue() == "worker   | ready\n"


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal()
    StreamLog(terminal)("worker", "ready")
    assert terminal.getvalue() == "worker   | ready\n"


def test_a_line_cannot_send_control_characters_to_the_terminal() -> None:
    stream = io.StringIO()
    StreamLog(stream)("gateway", "GET /\x1b[2J\r\x9b")
    assert stream.getvalue() == "gateway  | GET /\\x1b[2J\\x0d\\x9b\n"


def test_a_reader_that_has_gone_stops_nobody() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    stream = os.fdopen(writing, "w")
    StreamLog(stream)("worker", "ready")
    with pytest.raises(BrokenPipeError):
        stream.close()


def test_the_first_key_is_shown_on_the_terminal_and_kept_nowhere(tmp_path: Path) -> None:
    terminal = Terminal()
    hand_over("lensd_abc_secret", tmp_path, terminal)
    assert "lensd_abc_secret" in terminal.getvalue()
    assert not list(tmp_path.iterdir())


def test_without_a_terminal_the_first_key_goes_into_a_file_only_its_owner_reads(tmp_path: Path) -> None:
    output = io.StringIO()
    (tmp_path / "api-key").write_text("an older one, readable by all")
    hand_over("lensd_abc_secret", tmp_path, output)
    assert (tmp_path / "api-key").read_text() == "lensd_abc_secret\n"
    assert stat.S_IMODE((tmp_path / "api-key").stat().st_mode) == 0o600
    assert "secret" not in output.getvalue()


def test_sigterm_ends_the_block_once_and_then_lets_it_drain() -> None:
    def be_terminated() -> None:
        with ended_by_signals():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(10)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        be_terminated()
    assert signal.getsignal(signal.SIGTERM) == before
