"""The health check of the worker's container: `python -m deploy.worker_health`.

Healthy is a container whose worker's heartbeat is fresh; a worker leaves its host's name with each beat.
"""

import socket
import sys

from services.adapters.redis_client import make_client
from services.adapters.redis_workers import RedisWorkers
from services.contracts.errors import Unavailable
from worker.settings import WorkerSettings


def why_unhealthy(redis_url: str, host: str) -> str | None:
    """What is wrong with the worker on `host`; None when its heartbeat is fresh."""
    client = make_client(redis_url, patient=False)
    try:
        alive = RedisWorkers(client).alive()
    except Unavailable as error:
        return str(error)
    finally:
        client.close()
    return None if any(state.worker.startswith(f"{host}-") for state in alive) else f"no heartbeat from {host}"


if __name__ == "__main__":
    sys.exit(why_unhealthy(WorkerSettings().store_url, socket.gethostname()))
