"""The operator's command line."""

import argparse
from pathlib import Path

import pytest

from api.cli import main, make_parser
from api.keys_cli import run_keys, store_url
from api.openapi import render
from api.settings import GatewaySettings
from services.contracts.errors import Refused
from services.tenants.administration import KeyAdministration
from services.tenants.keys import Scope, authenticate, parse_strong_key
from services.tenants.limits import KeyLimits
from services.tenants.memory import MemoryAuditLog, MemoryKeyStore


def parsed(*arguments: str) -> argparse.Namespace:
    return make_parser().parse_args(["keys", *arguments])


@pytest.fixture
def keys() -> KeyAdministration:
    return KeyAdministration(MemoryKeyStore(), MemoryAuditLog())


def test_a_new_key_is_shown_once_and_works(keys: KeyAdministration, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_keys(parsed("new", "--name", "ci", "--owner", "evals", "--scope", "read", "--days", "7"), keys) == 0
    plaintext = capsys.readouterr().out.strip()
    key = authenticate(keys.keys, plaintext).key
    assert (key.owner, key.name, key.scopes) == ("evals", "ci", (Scope.READ,))
    assert key.expires_at is not None
    assert (key.expires_at - key.created_at).days in (6, 7)


def test_a_key_may_make_and_read_jobs_unless_told_otherwise(
    keys: KeyAdministration, capsys: pytest.CaptureFixture[str]
) -> None:
    run_keys(parsed("new"), keys)
    assert authenticate(keys.keys, capsys.readouterr().out.strip()).key.scopes == (Scope.JOBS, Scope.READ)


def test_the_list_shows_keys_without_their_secrets(keys: KeyAdministration, capsys: pytest.CaptureFixture[str]) -> None:
    run_keys(parsed("new", "--name", "ci"), keys)
    _, key_id, secret = capsys.readouterr().out.strip().split("_", 2)
    assert run_keys(parsed("list"), keys) == 0
    shown = capsys.readouterr().out
    assert key_id in shown
    assert "ci" in shown
    assert secret not in shown


def test_a_revoked_key_is_refused_and_revoking_it_again_says_so(
    keys: KeyAdministration, capsys: pytest.CaptureFixture[str]
) -> None:
    run_keys(parsed("new"), keys)
    key_id = capsys.readouterr().out.split("_")[1]
    assert run_keys(parsed("revoke", key_id), keys) == 0
    assert keys.keys.get(key_id) is None
    assert run_keys(parsed("revoke", key_id), keys) == 1
    assert "there is no key" in capsys.readouterr().err


def test_a_key_is_made_for_some_models_and_with_limits_of_its_own(
    keys: KeyAdministration, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--model", "tiny", "--model", "small", "--requests-per-second", "0.5", "--jobs", "3")
    assert run_keys(parsed("new", *arguments), keys) == 0
    key = authenticate(keys.keys, capsys.readouterr().out.strip()).key
    assert key.models == ("tiny", "small")
    assert key.limits == KeyLimits(requests_per_second=0.5, jobs=3)
    assert run_keys(parsed("list"), keys) == 0
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("tiny,small", "requests_per_second=0.5", "jobs=3", "used "))


def test_a_key_is_rotated_and_its_old_secret_stays_good_only_if_asked(
    keys: KeyAdministration, capsys: pytest.CaptureFixture[str]
) -> None:
    run_keys(parsed("new", "--owner", "evals"), keys)
    first = capsys.readouterr().out.strip()
    key_id = first.split("_")[1]
    assert run_keys(parsed("rotate", key_id, "--overlap-hours", "1"), keys) == 0
    second = capsys.readouterr().out.strip()
    assert {authenticate(keys.keys, plaintext).key.owner for plaintext in (first, second)} == {"evals"}
    assert run_keys(parsed("rotate", key_id), keys) == 0
    third = capsys.readouterr().out.strip()
    assert authenticate(keys.keys, third).key.id == key_id
    for plaintext in (first, second):
        with pytest.raises(Refused):
            authenticate(keys.keys, plaintext)


def test_the_last_admin_key_is_revoked_only_on_purpose(
    keys: KeyAdministration, capsys: pytest.CaptureFixture[str]
) -> None:
    run_keys(parsed("new", "--scope", "admin"), keys)
    key_id = capsys.readouterr().out.split("_")[1]
    assert run_keys(parsed("revoke", key_id), keys) == 1
    assert "last key with the scope admin" in capsys.readouterr().err
    assert run_keys(parsed("revoke", key_id, "--even-the-last"), keys) == 0


def test_what_the_shell_does_to_keys_is_on_record(keys: KeyAdministration, capsys: pytest.CaptureFixture[str]) -> None:
    run_keys(parsed("new"), keys)
    key_id = capsys.readouterr().out.split("_")[1]
    run_keys(parsed("rotate", key_id), keys)
    run_keys(parsed("revoke", key_id), keys)
    entries = keys.audit.page(None, 10).entries
    assert [entry.action for entry in entries] == ["key_revoked", "key_rotated", "key_created"]
    assert {(entry.actor, entry.target) for entry in entries} == {("shell", key_id)}


def test_a_bootstrap_key_can_be_made_without_a_store(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "new", "--unstored"]) == 0
    parse_strong_key(capsys.readouterr().out.strip())


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["new", "--days", "0"],
        ["new", "--days", "nan"],
        ["new", "--scope", "root"],
        ["new", "--owner", "a:b"],
        ["new", "--name", "a\nb"],
        ["new", "--queue-share", "1.5"],
        ["rotate", "abcdefghij23", "--overlap-hours", "-1"],
    ],
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


def test_every_command_of_the_page_on_operating_is_understood() -> None:
    page = (Path(__file__).parents[2] / "docs" / "operating.md").read_text(encoding="utf-8")
    commands = [line.split()[1:] for line in page.splitlines() if line.startswith("lensd ")]
    assert {command[1] for command in commands} == {"new", "list", "rotate", "revoke"}
    for command in commands:
        assert make_parser().parse_args(command).command == "keys"


def test_the_page_on_operating_tells_the_defaults_of_the_settings() -> None:
    page = (Path(__file__).parents[2] / "docs" / "operating.md").read_text(encoding="utf-8")
    limits = GatewaySettings().tenant_limits()
    assert f"| {limits.rate.per_second:.0f}, {limits.rate.burst} |" in page
    assert f"queued and running | {limits.jobs.jobs} |" in page
    assert f"| {limits.jobs.queue_share} | `queue_share`" in page
    assert f"| {GatewaySettings().max_redis_blobs // 2**20} MiB |" in page
    assert f"and a batch after its own: {GatewaySettings().retention_h:.0f}, from" in page
    assert (limits.jobs.running, limits.jobs.daily_token_layers) == (None, None)
    for name in KeyLimits.model_fields:
        assert f"`{name}`" in page
