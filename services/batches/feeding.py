"""Feeding a batch: its lines become jobs, in their order, as long as there is room."""

from collections.abc import Iterator, Sequence

from services.batches.ids import job_id_of
from services.batches.intake import Intake, read_line
from services.batches.pace import LINES_AT_ONCE, Pace
from services.batches.record import Batch, StoredLine, Turn, TurnLost
from services.batches.store import BatchStore
from services.batches.upload import UploadLostError, read_slice
from services.contracts.errors import Conflict, Unavailable
from services.jobs.ports import Blobs
from services.jobs.record import NewJob

BYTES_AT_ONCE = 4 * 2**20
WHEN_FULL_S = 0.5
WHEN_FED_S = 10.0
LONGEST_PAUSE_S = 10.0


def feed(turn: Turn, batches: BatchStore, blobs: Blobs, intake: Intake, pace: Pace, *, window: int) -> float:
    """Turn the next lines into jobs; after how many seconds to go on.

    `window`: how many of the batch's jobs may be queued or running. Raises TurnLost, UploadLostError, Unavailable.
    """
    batch = turn.batch
    if batch.fed == batch.lines:
        return WHEN_FED_S
    room = min(window - batch.living, LINES_AT_ONCE)
    if room <= 0:
        return WHEN_FULL_S
    lines = batches.lines(batch.id, batch.fed, room)
    if not lines:
        raise UploadLostError
    fed, pause_s = batch.fed, 0.0
    wrong: dict[int, StoredLine] = {}
    for line, text in pace.some(_texts(batch, lines, blobs)):
        try:
            if (refused := _submit(batch, fed, line, text, intake)) is not None:
                wrong[fed] = refused
        except Conflict as closed:
            raise TurnLost from closed
        except Unavailable as full:
            # No line fails for want of room: it is tried again until there is some.
            pause_s = min(full.retry_after_s, LONGEST_PAUSE_S)
            break
        fed += 1
    batches.feed(turn, fed, wrong)
    return pause_s


def _submit(batch: Batch, index: int, line: StoredLine, text: bytes, intake: Intake) -> StoredLine | None:
    """Submit the line's job; the line with its fault if it is wrong after all, since what is served has changed."""
    if line.fault is not None:
        return None
    read = read_line(intake, text, batch.key)
    if read.job is None:
        return line.model_copy(update={"fault": read.fault})
    intake.submit(_job_of(batch, index, read.job))
    return None


def _job_of(batch: Batch, index: int, job: NewJob) -> NewJob:
    """The line's job under its own id, tied to its batch, in the line of batch jobs."""
    return job.model_copy(
        update={
            "id": job_id_of(batch.id, index),
            "spec": job.spec.model_copy(update={"priority": "batch"}),
            "ties": job.ties.model_copy(update={"batch": batch.id}),
        }
    )


def _texts(batch: Batch, lines: Sequence[StoredLine], blobs: Blobs) -> Iterator[tuple[StoredLine, bytes]]:
    """Each line with its text; one read of the upload for as many as are not too large together."""
    start, texts = 0, b""
    for line in lines:
        end = line.offset + line.nbytes
        if not start <= line.offset <= end <= start + len(texts):
            start = line.offset
            upto = max(end, min(start + BYTES_AT_ONCE, lines[-1].offset + lines[-1].nbytes))
            texts = read_slice(blobs, batch.blob or "", start, upto - start)
        yield line, texts[line.offset - start : end - start]
