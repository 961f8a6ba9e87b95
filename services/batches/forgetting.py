"""A batch goes as a whole: its jobs, their blobs, its upload, and last of all its record.

Should that be cut short, the record is still there to begin again from.
"""

from services.batches.ids import job_id_of
from services.batches.record import Batch
from services.batches.store import BatchStore
from services.jobs.ports import Blobs

_AT_ONCE = 200


def forget_batch(batch: Batch, batches: BatchStore, blobs: Blobs) -> None:
    """Forget a batch that has ended. Raises Unavailable."""
    with_blobs = set(blobs.jobs())
    for first in range(0, batch.lines, _AT_ONCE):
        indices = range(first, min(first + _AT_ONCE, batch.lines))
        job_ids = [job_id_of(batch.id, index) for index in indices]
        batches.forget_jobs(job_ids)
        for job_id in job_ids:
            if job_id in with_blobs:
                blobs.delete(job_id)
    blobs.delete(batch.id)
    batches.forget(batch.id)
