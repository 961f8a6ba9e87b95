"""Validating a batch: its lines are read as posts would be, before any of them runs."""

from collections.abc import Sequence

from services.batches.intake import Intake, ReadLine, read_line
from services.batches.pace import Pace
from services.batches.record import Batch, Checked, StoredLine, Turn
from services.batches.store import BatchStore
from services.batches.upload import RawLine, UploadLostError, lines_from
from services.contracts.batch import LineFault
from services.contracts.errors import ErrorCode, Limited
from services.contracts.job import JobError
from services.jobs.ports import Blobs


def validate(turn: Turn, batches: BatchStore, blobs: Blobs, intake: Intake, pace: Pace) -> None:
    """Read the next lines, or decide what becomes of the batch when all are read.

    Raises TurnLost, UploadLostError, Unavailable.
    """
    batch = turn.batch
    if batch.checked == batch.lines:
        _decide(turn, batches, intake)
        return
    lines = lines_from(blobs, batch.blob or "", batch.offset, batch.number)
    read = [(line, read_line(intake, line.text, batch.key)) for line in pace.some(lines)]
    if read:
        stored = _without_namesakes(turn, batches, [_stored(*each) for each in read])
        last = read[-1][0]
        cost = sum(result.job.cost for _, result in read if result.job is not None)
        batches.check(turn, Checked(stored, last.offset + len(last.text) + 1, last.number, cost))
    elif not pace.stopping():
        raise UploadLostError


def _decide(turn: Turn, batches: BatchStore, intake: Intake) -> None:
    batch = turn.batch
    if batch.invalid and (batch.on_invalid == "refuse" or batch.invalid == batch.lines):
        batches.fail(turn, JobError(code=ErrorCode.INVALID_LINES, message=_told(batch)))
        return
    try:
        batches.start(turn, intake.daily_token_layers(batch.key))
    except Limited as refused:
        batches.fail(turn, JobError(code=refused.code, message=refused.message))


def _told(batch: Batch) -> str:
    return (
        f"{batch.invalid:,} of {batch.lines:,} lines are wrong, and nothing was run: `errors` has the first of them, "
        "the results of the batch have all"
    )


def _stored(line: RawLine, read: ReadLine) -> StoredLine:
    nbytes = len(line.text)
    return StoredLine(number=line.number, offset=line.offset, nbytes=nbytes, custom_id=read.custom_id, fault=read.fault)


def _without_namesakes(turn: Turn, batches: BatchStore, lines: Sequence[StoredLine]) -> tuple[StoredLine, ...]:
    """The lines; those whose custom id is an earlier one's are wrong."""
    first: dict[str, int] = {}
    for line in lines:
        if line.custom_id is not None:
            first.setdefault(line.custom_id, line.number)
    first |= batches.name(turn, first)
    return tuple(_refused_namesake(line, first.get(line.custom_id or "", line.number)) for line in lines)


def _refused_namesake(line: StoredLine, first: int) -> StoredLine:
    if first == line.number or line.fault is not None:
        return line
    message = f"the custom_id {line.custom_id!r} is that of line {first} already"
    fault = LineFault(code=ErrorCode.INVALID_REQUEST, message=message, pointer="/custom_id")
    return line.model_copy(update={"fault": fault})
