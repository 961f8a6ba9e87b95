"""One line per event on stderr, for a person or for a machine; every line of a request or a job carries its id.

Prompts, specifications and keys never go into a log.
"""

import json
import logging
import logging.config
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal

LogFormat = Literal["console", "json"]

_TALKATIVE = ("uvicorn", "uvicorn.error", "celery", "kombu", "httpx", "httpcore")
"""Libraries of which only warnings are of interest."""

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id of the request being served, also in the threads it uses."""

job_id: ContextVar[str | None] = ContextVar("job_id", default=None)
"""The id of the job that this thread or request is about."""


def configure(log_format: LogFormat, level: str) -> None:
    """Send every logger of the process, its libraries' among them, through one handler."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"console": {"()": ConsoleFormatter}, "json": {"()": JsonFormatter}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": log_format}},
            "root": {"level": level, "handlers": ["stderr"]},
            "loggers": {name: {"level": "WARNING"} for name in _TALKATIVE},
        }
    )
    logging.captureWarnings(True)


class ConsoleFormatter(logging.Formatter):
    """`12:00:00 INFO api.access: GET /v1/models 200 request=… ms=1.4`."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S")
        fields = "".join(f" {name}={value}" for name, value in _fields(record).items())
        line = f"{when} {record.levelname} {record.name}: {record.getMessage()}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """The same as one JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """What `extra={"fields": {…}}` brought, after the ids of the request and the job."""
    ids: dict[str, object] = {"request_id": request_id.get(), "job_id": job_id.get()}
    return {**{name: value for name, value in ids.items() if value}, **getattr(record, "fields", {})}
