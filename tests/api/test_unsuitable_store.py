"""A gateway on a store that would lose its jobs."""

import os
import subprocess
import sys
from pathlib import Path

from redis import Redis

from services.adapters.embedded_valkey import free_port
from services.adapters.parent_death import dies_with_parent
from services.tenants.keys import Scope, new_key
from tests.processes import eventually
from tests.services.adapters.valkey import valkey_server

COMMAND = (sys.executable, "-m", "api")


def test_a_gateway_needs_an_append_only_file_unless_jobs_may_be_lost(tmp_path: Path) -> None:
    with valkey_server(tmp_path) as server, Redis.from_url(server.url) as client:
        client.config_set("appendonly", "no")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LENSD_")} | {
            "LENSD_REDIS_URL": server.url,
            "LENSD_HOME": str(tmp_path),
            "LENSD_PORT": str(free_port()),
            "LENSD_BOOTSTRAP_KEY": new_key("operator", "test", tuple(Scope))[0],
        }
        refused = subprocess.run(COMMAND, check=False, capture_output=True, text=True, env=environment, timeout=60)
        assert refused.returncode == 1
        assert "append-only file" in refused.stderr
        with subprocess.Popen(
            dies_with_parent(COMMAND), env=environment | {"LENSD_STORE_EPHEMERAL": "true"}, stderr=subprocess.DEVNULL
        ) as process:
            try:
                assert eventually(lambda: client.hlen("lensd:keys") == 1, 60)
            finally:
                process.kill()
