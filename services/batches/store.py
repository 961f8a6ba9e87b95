"""The batches: where each one's life is written down, and who works on it.

    uploading ──► validating ──► running ──► ended
                      │             │
                      ▼             ▼ cancel
                   failed       cancelling ──► ended

A batch's jobs are ordinary jobs with a tie to it. The job store counts their ends in the batch in the same step, keeps
their records for as long as the batch is kept, and takes no job of a batch that does not run. Every implementation
passes the same tests (`tests/services/batches/`) and raises Unavailable(STORE_UNAVAILABLE) when what stands behind it
does not answer.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Protocol

from services.batches.record import Batch, BatchPage, Checked, NewBatch, StoredLine, Turn
from services.contracts.errors import Conflict, ErrorCode, Limited
from services.contracts.job import JobError, JobStatus
from services.jobs.limits import SOON_S
from services.jobs.record import Idempotency

ABANDONED_S = 3600
"""After which an upload that never came to its end is forgotten."""

LEASE_S = 15.0
"""How long a keeper may take over one piece of work before another keeper takes the batch."""


class BatchStore(Protocol):
    def create(self, batch: NewBatch, open_at_most: int, idempotency: Idempotency | None = None) -> Batch:
        """Note a batch that is being uploaded; with an idempotency key used before, the earlier one.

        Raises Conflict(IDEMPOTENCY_CONFLICT) if that was another request, Limited(TOO_MANY_BATCHES) when as many of the
        owner's batches are unfinished, or `JobPolicy.max_kept_batches` are kept, Limited(TOO_MANY_JOBS) when the owner
        may keep no more jobs, Unavailable(QUEUE_FULL) over the bound of the server's memory. Repeating a call is
        harmless.
        """

    def open(self, batch_id: str, blob: str) -> Batch | None:
        """The upload is stored: from now on the batch is there, and validated. Only the first upload counts."""

    def abandon(self, batch_id: str) -> None:
        """The upload could not be stored: forget the batch, unless somebody opened it meanwhile."""

    def get(self, batch_id: str) -> Batch | None: ...

    def list(self, owner: str, cursor: str | None, limit: int) -> BatchPage:
        """The owner's batches; raises Refused(INVALID_REQUEST) on a cursor that is not ours."""

    def lines(self, batch_id: str, first: int, count: int) -> Sequence[StoredLine]:
        """Validated lines from `first` on, counted from 0."""

    def deleted(self, batch_id: str, job_ids: Sequence[str]) -> Mapping[str, JobStatus]:
        """Those of the batch's jobs that were deleted one by one, and how they had ended."""

    def cancel(self, batch_id: str) -> Batch | None:
        """Feed no more lines, and cancel the jobs there are; a batch that has ended is left as it is."""

    def forget_jobs(self, job_ids: Sequence[str]) -> None:
        """Forget these jobs, which must have ended or never been; the caller deletes their blobs."""

    def forget(self, batch_id: str) -> None:
        """Forget a batch whose jobs are forgotten."""

    def take(self) -> Turn | None:
        """The batch that has waited longest for a keeper, for `LEASE_S`; None when none waits."""

    def put_back(self, turn: Turn, after_s: float) -> None:
        """End the turn; the batch waits for its next one in `after_s`, or at once if something happened meanwhile."""

    def name(self, turn: Turn, names: Mapping[str, int]) -> Mapping[str, int]:
        """Reserve custom ids for lines (by number); those that belong to another line already, and to which.

        As everything below, it raises TurnLost when the turn is over or the batch in another phase.
        """

    def check(self, turn: Turn, checked: Checked) -> None:
        """Note what validating the next lines came to."""

    def start(self, turn: Turn, daily_token_layers: int | None) -> None:
        """All lines are validated: the batch runs from now on.

        Raises Limited(QUOTA_EXCEEDED) if its estimate is more than what is left of its owner's day.
        """

    def fail(self, turn: Turn, error: JobError) -> None:
        """Nothing of it is to run: the batch ends, its good lines cancelled."""

    def feed(self, turn: Turn, fed: int, wrong: Mapping[int, StoredLine]) -> None:
        """The first `fed` lines are jobs now, but for those that turned out wrong, by index."""

    def stop(self, turn: Turn, error: JobError) -> None:
        """It cannot go on: as if it had been cancelled, with the reason."""

    def cancel_jobs(self, turn: Turn, at_most: int) -> None:
        """Cancel queued jobs of the batch, ask the running ones to stop."""


def too_many_batches(unfinished: int) -> Limited:
    message = f"{unfinished} of your batches have not ended, which is as many as may be: wait for one to end"
    return Limited(ErrorCode.TOO_MANY_BATCHES, message, retry_after_s=SOON_S)


def too_many_kept_batches(kept: int) -> Limited:
    message = f"{kept} of your batches are kept, which is as many as may be: delete those whose results you have read"
    return Limited(ErrorCode.TOO_MANY_BATCHES, message, retry_after_s=SOON_S)


def batch_over_quota(cost: int, charged: int, bound: int, resets_in: timedelta) -> Limited:
    """`cost`, `charged` and `bound` in token-layers."""
    message = (
        f"the batch is estimated at {cost} token-layers of engine work, and {charged} of your {bound} a day are "
        "charged already: nothing was run; send a smaller batch, or send it again after midnight UTC"
    )
    return Limited(ErrorCode.QUOTA_EXCEEDED, message, retry_after_s=-(-resets_in // timedelta(seconds=1)))


def reused_key() -> Conflict:
    message = "this Idempotency-Key was used for another batch: use a fresh key for a new one"
    return Conflict(ErrorCode.IDEMPOTENCY_CONFLICT, message)
