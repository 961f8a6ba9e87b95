"""The Celery application: `celery -A worker.app:app worker -P threads`.

Celery carries doorbells only. A doorbell names a pool and no job: the slot that it wakes claims whatever is next. So
messages are acknowledged early, nothing waits in a result backend, and a lost or doubled ring does no harm.
Importing this module connects to nothing; the worker's parts are built when Celery starts one.
"""

import logging
from typing import Any

from celery import Celery
from celery.signals import celeryd_init, setup_logging, worker_init, worker_ready, worker_shutdown, worker_shutting_down

from services.adapters.celery_doorbell import QUEUE_PREFIX, TASK
from services.adapters.celery_transport import use_enduring_transport
from services.logs import configure
from worker.process import WorkerProcess
from worker.settings import WorkerSettings

log = logging.getLogger("lensd.worker")

_process: WorkerProcess | None = None


def _configuration() -> dict[str, Any]:
    """Read when Celery first needs it, not at import."""
    settings = WorkerSettings()
    use_enduring_transport()
    return {
        "broker_url": settings.store_url,
        "task_default_queue": QUEUE_PREFIX + settings.pool,
        "accept_content": ["json"],
        "task_serializer": "json",
        "task_acks_late": False,
        "task_ignore_result": True,
        "task_protocol": 2,
        "worker_prefetch_multiplier": 1,
        "worker_concurrency": settings.slots,
        "worker_enable_remote_control": False,
        "worker_hijack_root_logger": False,
        "worker_send_task_events": False,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_transport_options": {
            "visibility_timeout": 60,
            "unacked_restore_interval": 5,
            "unacked_restore_throttle": 1,
        },
    }


app = Celery("lensd", set_as_current=False)
app.add_defaults(_configuration)


@app.task(name=TASK)
def ring(**_doorbell: object) -> None:
    """Somebody rang: see whether there is work. What the message says does not matter."""
    if _process is not None:
        _process.answer()


@celeryd_init.connect
@setup_logging.connect
def _log(**_: object) -> None:
    """Early, for what Celery warns of as it starts; and where Celery would set up its own logging."""
    settings = WorkerSettings()
    configure(settings.log_format, settings.log_level)


@worker_init.connect
def _start(**_: object) -> None:
    global _process  # noqa: PLW0603 - Celery's signals have no other way to reach the task
    try:
        _process = WorkerProcess(WorkerSettings())
        _process.start()
    except Exception:
        # Celery would swallow it and wait for doorbells that nobody hears.
        log.exception("the worker cannot start")
        raise SystemExit(1) from None


@worker_ready.connect
def _ready(**_: object) -> None:
    if _process is not None:
        _process.preload()
        _process.answer_soon()


@worker_shutting_down.connect
def _drain(**_: object) -> None:
    if _process is not None:
        _process.drain()


@worker_shutdown.connect
def _stop(**_: object) -> None:
    if _process is not None:
        _process.stop()
