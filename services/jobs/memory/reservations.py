"""Which job an `Idempotency-Key` belongs to."""

from services.jobs.idempotency import key_reused
from services.jobs.record import Idempotency


class Reservations:
    """Keys of different owners never meet."""

    def __init__(self) -> None:
        self._jobs: dict[tuple[str, str], tuple[str, str]] = {}

    def taken(self, owner: str, idempotency: Idempotency | None) -> bool:
        return idempotency is not None and (owner, idempotency.key) in self._jobs

    def holder(self, owner: str, idempotency: Idempotency | None) -> str | None:
        """The job that the same request made, or None; raises Conflict if it was another request."""
        if idempotency is None or not self.taken(owner, idempotency):
            return None
        job_id, request = self._jobs[owner, idempotency.key]
        if request != idempotency.request_sha256:
            raise key_reused()
        return job_id

    def take(self, owner: str, idempotency: Idempotency | None, job_id: str) -> None:
        if idempotency is not None:
            self._jobs[owner, idempotency.key] = (job_id, idempotency.request_sha256)

    def free(self, job_id: str) -> None:
        self._jobs = {key: held for key, held in self._jobs.items() if held[0] != job_id}
