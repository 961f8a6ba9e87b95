"""Doorbells as Celery messages: the task `lensd.ring` in the pool's own queue."""

import logging

from celery import Celery

QUEUE_PREFIX = "lensd."
TASK = "lensd.ring"

_log = logging.getLogger(__name__)


class CeleryDoorbell:
    """Implements `services.jobs.ports.Doorbell`; connects when it first rings."""

    def __init__(self, broker_url: str) -> None:
        self._app = Celery("lensd", set_as_current=False)
        self._app.conf.update(
            broker_url=broker_url,
            broker_connection_timeout=0.5,
            broker_transport_options={
                "socket_connect_timeout": 0.5,
                "socket_timeout": 0.5,
                "max_retries": 1,
                "interval_start": 0,
            },
            accept_content=["json"],
            task_serializer="json",
            task_ignore_result=True,
            task_publish_retry_policy={
                "max_retries": 2,
                "interval_start": 0,
                "interval_step": 0.1,
                "interval_max": 0.2,
            },
        )

    def ring(self, pool: str) -> None:
        try:
            self._app.send_task(TASK, kwargs={"pool": pool}, queue=QUEUE_PREFIX + pool)
        except Exception as error:
            _log.warning("could not ring for pool %s: %s", pool, error)

    def waiting(self, pool: str) -> int | None:
        try:
            with self._app.producer_or_acquire() as producer:
                return int(producer.channel.queue_declare(QUEUE_PREFIX + pool).message_count)
        except Exception as error:
            _log.warning("could not count the rings for pool %s: %s", pool, error)
            return None
