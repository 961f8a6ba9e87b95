"""What a keeper does for a batch in one turn: a piece of work small enough that other batches need not wait.

1. validating: read the next lines as posts would be read, and note each one's name and fault; after the last line
   decide whether anything is to run;
2. running: turn the next lines into jobs, in their order, as long as few enough of the batch's jobs are unfinished;
3. cancelling: cancel jobs; 4. ended: delete the upload, which nobody needs any more; 5. expired: forget it all.

Every piece may be cut short by a crash and done again by another keeper: ids of jobs follow from batch and line, and
the store takes each note once.
"""

from dataclasses import dataclass

from services.batches.feeding import WHEN_FULL_S, feed
from services.batches.forgetting import forget_batch
from services.batches.intake import Intake
from services.batches.pace import Pace
from services.batches.record import Phase, Turn
from services.batches.store import BatchStore
from services.batches.upload import UploadLostError
from services.batches.validating import validate
from services.contracts.errors import ErrorCode
from services.contracts.job import JobError
from services.jobs.ports import Blobs

CANCELLED_AT_ONCE = 200

UPLOAD_LOST = JobError(
    code=ErrorCode.UPLOAD_LOST, message="the upload of the batch is no longer in the store: send the rest again"
)


@dataclass(frozen=True)
class BatchWork:
    """`window`: how many jobs of one batch may be queued or running at a time."""

    batches: BatchStore
    blobs: Blobs
    intake: Intake
    window: int

    def do(self, turn: Turn, pace: Pace) -> float:
        """One piece of work; after how many seconds the batch needs the next one. Raises TurnLost, Unavailable."""
        match turn.batch.phase:
            case Phase.UPLOADING:
                self.blobs.delete(turn.batch.id)
                self.batches.abandon(turn.batch.id)
            case Phase.VALIDATING:
                try:
                    validate(turn, self.batches, self.blobs, self.intake, pace)
                except UploadLostError:
                    self.batches.fail(turn, UPLOAD_LOST)
            case Phase.RUNNING:
                try:
                    return feed(turn, self.batches, self.blobs, self.intake, pace, window=self.window)
                except UploadLostError:
                    self.batches.stop(turn, UPLOAD_LOST)
            case Phase.CANCELLING:
                self.batches.cancel_jobs(turn, CANCELLED_AT_ONCE)
                return 0.0 if turn.batch.living > CANCELLED_AT_ONCE else WHEN_FULL_S
            case Phase.ENDED | Phase.FAILED:
                return self._clear(turn)
        return 0.0

    def _clear(self, turn: Turn) -> float:
        batch = turn.batch
        assert batch.expires_at is not None
        left_s = (batch.expires_at - turn.at).total_seconds()
        if left_s > 0:
            self.blobs.delete(batch.id)
            return left_s
        forget_batch(batch, self.batches, self.blobs)
        return 0.0
