"""The operator's command line."""

import argparse
from pathlib import Path

import pytest

from api.cli import main, make_parser, run_keys, store_url
from api.openapi import render
from api.settings import GatewaySettings
from services.tenants.keys import Scope, authenticate, parse_strong_key
from services.tenants.memory import MemoryKeyStore


def parsed(*arguments: str) -> argparse.Namespace:
    return make_parser().parse_args(["keys", *arguments])


@pytest.fixture
def keys() -> MemoryKeyStore:
    return MemoryKeyStore()


def test_a_new_key_is_shown_once_and_works(keys: MemoryKeyStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_keys(parsed("new", "--name", "ci", "--owner", "evals", "--scope", "read", "--days", "7"), keys) == 0
    plaintext = capsys.readouterr().out.strip()
    key = authenticate(keys, plaintext)
    assert (key.owner, key.name, key.scopes) == ("evals", "ci", (Scope.READ,))
    assert key.expires_at is not None
    assert (key.expires_at - key.created_at).days in (6, 7)


def test_a_key_may_make_and_read_jobs_unless_told_otherwise(
    keys: MemoryKeyStore, capsys: pytest.CaptureFixture[str]
) -> None:
    run_keys(parsed("new"), keys)
    assert authenticate(keys, capsys.readouterr().out.strip()).scopes == (Scope.JOBS, Scope.READ)


def test_the_list_shows_keys_without_their_secrets(keys: MemoryKeyStore, capsys: pytest.CaptureFixture[str]) -> None:
    run_keys(parsed("new", "--name", "ci"), keys)
    _, key_id, secret = capsys.readouterr().out.strip().split("_", 2)
    assert run_keys(parsed("list"), keys) == 0
    shown = capsys.readouterr().out
    assert key_id in shown
    assert "ci" in shown
    assert secret not in shown


def test_a_revoked_key_is_refused_and_revoking_it_again_says_so(
    keys: MemoryKeyStore, capsys: pytest.CaptureFixture[str]
) -> None:
    run_keys(parsed("new"), keys)
    key_id = capsys.readouterr().out.split("_")[1]
    assert run_keys(parsed("revoke", key_id), keys) == 0
    assert keys.get(key_id) is None
    assert run_keys(parsed("revoke", key_id), keys) == 1
    assert "there is no key" in capsys.readouterr().err


def test_a_bootstrap_key_can_be_made_without_a_store(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "new", "--unstored"]) == 0
    parse_strong_key(capsys.readouterr().out.strip())


@pytest.mark.parametrize(
    "arguments", [["new", "--days", "0"], ["new", "--scope", "root"], ["new", "--days", "nan"], []]
)
def test_wrong_arguments_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        parsed(*arguments)


def test_the_openapi_document_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["openapi"]) == 0
    assert capsys.readouterr().out == render()


def test_a_store_that_does_not_answer_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LENSD_REDIS_URL", "redis://127.0.0.1:1/0")
    assert main(["keys", "list"]) == 1
    assert capsys.readouterr().err == "lensd: the job store does not answer: try again\n"


def test_the_keys_of_the_local_stack_are_found_by_its_data_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LENSD_REDIS_URL", raising=False)
    assert store_url(GatewaySettings(home=tmp_path)) == "redis://127.0.0.1:6379/0"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "redis-url").write_text("redis://:pw@127.0.0.1:20001/0\n", encoding="ascii")
    assert store_url(GatewaySettings(home=tmp_path)) == "redis://:pw@127.0.0.1:20001/0"
    monkeypatch.setenv("LENSD_REDIS_URL", "redis://elsewhere:6379/0")
    assert store_url(GatewaySettings(home=tmp_path)) == "redis://elsewhere:6379/0"
