"""The gateway's settings, and its refusal to start with what is no setting."""

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ByteSize, SecretStr, ValidationError

from api.__main__ import build
from api.settings import GatewaySettings, explain
from services.contracts.errors import Unavailable
from services.jobs.ids import new_blob_key, new_job_id
from services.jobs.policy import JobPolicy
from services.store_settings import StoreSettings
from services.tenants.keys import Scope, new_key
from tests.services.adapters.valkey import valkey_server
from worker.settings import WorkerSettings

PLACEHOLDERS = [
    "changeme",
    "change-me",
    "lensd_aaaaaaaaaaaa_replace-me-replace-me",
    "<your key>",
    "${KEY}",
    "***",
    "XXXX",
]


def test_the_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENSD_HOME", "/data")
    monkeypatch.setenv("LENSD_PORT", "9000")
    monkeypatch.setenv("LENSD_MAX_BODY", "2MB")
    monkeypatch.setenv("LENSD_BOOTSTRAP_KEY", "")
    settings = GatewaySettings()
    assert (settings.home, settings.port, settings.max_body) == (Path("/data"), 9000, 2_000_000)
    assert settings.bootstrap_key is None
    assert not settings.share_results


@pytest.mark.parametrize("settings", [GatewaySettings, WorkerSettings])
def test_both_processes_keep_jobs_for_a_day_or_what_they_are_told(
    monkeypatch: pytest.MonkeyPatch, settings: type[StoreSettings]
) -> None:
    assert settings().job_policy() == JobPolicy(retention_s=86_400)
    monkeypatch.setenv("LENSD_RETENTION_H", "1.5")
    assert settings().job_policy() == JobPolicy(retention_s=5_400)
    for hours in ("0.9", "721", "nan", "forever"):
        monkeypatch.setenv("LENSD_RETENTION_H", hours)
        with pytest.raises(ValidationError, match="retention_h"):
            settings()


def test_what_redis_keeps_of_results_is_bounded_by_the_operator(tmp_path: Path) -> None:
    with valkey_server(tmp_path) as server:
        settings = GatewaySettings(
            home=tmp_path, redis_url=SecretStr(server.url), blobs="redis", max_redis_blobs=ByteSize(1_000_000)
        )
        services, _ = build(settings)
        key = new_blob_key(new_job_id(), 1)
        with pytest.raises(Unavailable, match="1000000 bytes"):
            services.blobs.put(key, b"x" * 1_000_001)
        services.blobs.put(key, b"x" * 400_000)
        assert services.blobs.get(key) is not None


def test_the_hosts_that_webhooks_may_reach_are_a_list_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    assert GatewaySettings().webhook_hosts == frozenset()
    monkeypatch.setenv("LENSD_WEBHOOK_HOSTS", "hooks.internal, 127.0.0.1:8080")
    assert GatewaySettings().webhook_hosts == {"hooks.internal", "127.0.0.1:8080"}
    monkeypatch.setenv("LENSD_WEBHOOK_HOSTS", "https://hooks.internal/")
    with pytest.raises(ValidationError, match="is not a host"):
        GatewaySettings()


def test_origins_and_proxies_are_lists_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (GatewaySettings().cors_origins, GatewaySettings().trusted_proxies) == ((), ())
    monkeypatch.setenv("LENSD_CORS_ORIGINS", "https://a.org, http://localhost:3000")
    monkeypatch.setenv("LENSD_TRUSTED_PROXIES", "10.0.0.0/8,::1")
    settings = GatewaySettings()
    assert settings.cors_origins == ("https://a.org", "http://localhost:3000")
    assert settings.trusted_proxies == ("10.0.0.0/8", "::1")


@pytest.mark.parametrize("origin", ["*", "a.org", "https://a.org/", "https://a.org/path", "null"])
def test_what_is_no_origin_is_refused(monkeypatch: pytest.MonkeyPatch, origin: str) -> None:
    monkeypatch.setenv("LENSD_CORS_ORIGINS", f"https://b.org,{origin}")
    with pytest.raises(ValidationError):
        GatewaySettings()


@pytest.mark.parametrize("secret", PLACEHOLDERS)
def test_a_placeholder_is_no_key(monkeypatch: pytest.MonkeyPatch, secret: str) -> None:
    monkeypatch.setenv("LENSD_BOOTSTRAP_KEY", secret)
    with pytest.raises(ValidationError, match="placeholder"):
        GatewaySettings()


@pytest.mark.parametrize("secret", ["changeme", "password", "<password>", "${REDIS_PASSWORD}"])
def test_a_placeholder_is_no_password_of_the_store(monkeypatch: pytest.MonkeyPatch, secret: str) -> None:
    monkeypatch.setenv("LENSD_REDIS_URL", f"redis://user:{secret}@redis.example:6379/0")
    with pytest.raises(ValidationError, match="placeholder"):
        GatewaySettings()


def test_real_secrets_are_taken_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(200):
        key = new_key("o", "n", tuple(Scope))[0]
        monkeypatch.setenv("LENSD_BOOTSTRAP_KEY", key)
        monkeypatch.setenv("LENSD_REDIS_URL", f"rediss://:{key[-43:]}@password.example:6379/0")
        shown = repr(GatewaySettings())
        assert key not in shown
        assert key[-43:] not in shown


def test_what_is_wrong_is_told_by_variable_without_the_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENSD_PORT", "99999")
    monkeypatch.setenv("LENSD_BOOTSTRAP_KEY", "changeme")
    with pytest.raises(ValidationError) as caught:
        GatewaySettings()
    told = explain(caught.value)
    assert "LENSD_PORT" in told
    assert "LENSD_BOOTSTRAP_KEY" in told
    assert "changeme" not in told


def test_the_process_ends_with_one_line_when_a_setting_is_wrong() -> None:
    environment = {"LENSD_BOOTSTRAP_KEY": "changeme", "PATH": ""}
    run = subprocess.run([sys.executable, "-m", "api"], check=False, capture_output=True, text=True, env=environment)
    assert run.returncode == 1
    assert run.stderr.count("\n") == 1
    assert "LENSD_BOOTSTRAP_KEY" in run.stderr
