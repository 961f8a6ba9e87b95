"""What the jobs of one owner may take up together, so that no owner crowds out the others."""

from dataclasses import dataclass
from datetime import timedelta

from services.contracts.errors import Conflict, ErrorCode, Limited


@dataclass(frozen=True)
class OwnerLimits:
    """Bounds that a new job is held against; None is no bound. The counts are the owner's, over all its keys."""

    jobs: int | None = None
    """Jobs that are queued or running."""

    running: int | None = None
    """Jobs that run at a time; the others wait, and let other owners' jobs pass."""

    queue_share: float = 1.0
    """Share of the pool's queue, `JobPolicy.max_queued`, that the owner's queued jobs may fill."""

    daily_token_layers: int | None = None
    """Engine work a day (UTC): charged by the estimate when a job is made, corrected to the bill when it ends."""


SOON_S = 10
"""What a client is told to wait for its own jobs to end, which nobody can foresee."""


def too_many_jobs(living: int) -> Limited:
    message = f"{living} of your jobs are queued or running, which is as many as may be: wait for some to end"
    return Limited(ErrorCode.TOO_MANY_JOBS, message, retry_after_s=SOON_S)


def queue_share_filled(share: int) -> Limited:
    message = f"{share} of your jobs are queued, your whole share of the queue: wait for some to start"
    return Limited(ErrorCode.TOO_MANY_JOBS, message, retry_after_s=SOON_S)


def too_many_kept(kept: int) -> Limited:
    message = (
        f"{kept} of your jobs are kept, which is as many as may be: delete those whose results you have read, or wait "
        "until the oldest expire"
    )
    return Limited(ErrorCode.TOO_MANY_JOBS, message, retry_after_s=SOON_S)


def too_much_kept(nbytes: int, share: int) -> Limited:
    message = (
        f"your jobs and their results take {nbytes} bytes of the store, and {share} are your share: delete those that "
        "you have read, or wait until the oldest expire"
    )
    return Limited(ErrorCode.TOO_MANY_JOBS, message, retry_after_s=SOON_S)


def quota_exceeded(cost: int, charged: int, bound: int, resets_in: timedelta) -> Limited:
    """`cost`, `charged` and `bound` in token-layers."""
    minutes = -(-resets_in // timedelta(minutes=1))
    message = (
        f"the job is estimated at {cost} token-layers of engine work, and {charged} of your {bound} a day are charged "
        f"already: the quota resets at midnight UTC, in {minutes} minutes"
    )
    return Limited(ErrorCode.QUOTA_EXCEEDED, message, retry_after_s=-(-resets_in // timedelta(seconds=1)))


def batch_closed(batch_id: str) -> Conflict:
    return Conflict(ErrorCode.BATCH_CLOSED, f"{batch_id} takes no more jobs: it has ended or was cancelled")
