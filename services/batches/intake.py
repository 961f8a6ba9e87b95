"""What the batches need of the gateway: to read a line as a post of its job would be read, and to post it."""

import logging
from dataclasses import dataclass
from typing import Protocol

from services.contracts.batch import LineFault
from services.contracts.errors import ErrorCode, Unavailable
from services.jobs.record import NewJob
from services.tenants.keys import ApiKey

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReadLine:
    """A line as it was understood: a job, or what is wrong; the custom id in both cases, if it could be read."""

    custom_id: str | None
    job: NewJob | None = None
    fault: LineFault | None = None


class Intake(Protocol):
    def read(self, line: bytes, key: ApiKey) -> ReadLine:
        """Parse, tokenise, estimate and check a line under the models and limits of `key`.

        Raises Unavailable when what it is checked against cannot be asked now, which says nothing about the line.
        """

    def submit(self, job: NewJob) -> None:
        """Store the job. Raises as `JobStore.create` does; repeating a call is harmless."""

    def daily_token_layers(self, key: ApiKey) -> int | None:
        """The bound of a day's engine work of the key's owner."""


def read_line(intake: Intake, line: bytes, key: ApiKey) -> ReadLine:
    """As `Intake.read`; a line that lensd cannot cope with is wrong, and does not hold up its batch for ever."""
    try:
        return intake.read(line, key)
    except Unavailable:
        raise
    except Exception as error:
        # The error itself may quote the line, which is not for logs.
        _log.error("a line of a batch could not be read: %s", type(error).__name__)
        return ReadLine(None, fault=LineFault(code=ErrorCode.INTERNAL, message="lensd failed to read this line"))
