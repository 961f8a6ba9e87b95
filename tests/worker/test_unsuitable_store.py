"""A worker on a store that would lose its jobs."""

from pathlib import Path

import pytest
from pydantic import SecretStr
from redis import Redis

from services.adapters.redis_client import UnsuitableServerError
from tests.services.adapters.valkey import valkey_server
from worker.process import WorkerProcess
from worker.settings import WorkerSettings


def test_a_worker_needs_an_append_only_file_unless_jobs_may_be_lost(tmp_path: Path) -> None:
    with valkey_server(tmp_path) as server:
        with Redis.from_url(server.url) as client:
            client.config_set("appendonly", "no")
        strict = WorkerSettings(redis_url=SecretStr(server.url), home=tmp_path)
        with pytest.raises(UnsuitableServerError, match="append-only file"):
            WorkerProcess(strict)
        WorkerProcess(strict.model_copy(update={"store_ephemeral": True}))
