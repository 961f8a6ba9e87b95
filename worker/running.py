"""One claimed job on its way through the worker: the ticket that the engine knows it by, and how it ends."""

import logging
import secrets
from collections.abc import Callable, Sequence

from services.contracts.errors import ErrorCode, LensdError
from services.contracts.generation import NewTokens
from services.contracts.job import JobError, JobProgress, JobResult
from services.engine.memory import is_out_of_memory
from services.engine.ticket import JobCancelled, JobTicket
from services.jobs.record import Beat, Cancelled, Claim, Ending, Failed, Stop, Succeeded
from services.jobs.token_news import joined

log = logging.getLogger("lensd.worker")


class RunningJob:
    """A claim being worked on. The heartbeat tells it to stop: it then waits for none of its rows any more, and the
    engine, which asks between chunks, runs no more of them.

    Single attributes are read and written by several threads; each is replaced whole.
    """

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.ticket = JobTicket(
            claim.job.id,
            claim.job.owner,
            cancelled=self._should_stop,
            on_progress=self._note_progress,
            alone=claim.alone,
            background=claim.job.priority == "batch",
        )
        self._stop: Stop | None = None
        self._lost = False
        self._handing_back = False
        self._progress = JobProgress(done=0, planned=0)
        self._reported = self._progress
        self._untold: list[NewTokens] = []

    def hear(self, beat: Beat) -> None:
        """Take in what the heartbeat learned."""
        self._stop = beat.stop
        self._lost = not beat.held
        self._stop_if_told()

    def hand_back(self) -> None:
        """Stop now, for the job to run elsewhere."""
        self._handing_back = True
        self._stop_if_told()

    @property
    def handed_back(self) -> bool:
        return self._handing_back and self._stop is None and not self._lost

    def fresh_progress(self) -> JobProgress | None:
        """Progress since the last call, if there was any."""
        progress = self._progress
        if progress == self._reported:
            return None
        self._reported = progress
        return progress

    @property
    def progress(self) -> JobProgress:
        return self._progress

    def note_token(self, token: NewTokens) -> None:
        """Take in a new token, on the engine's thread."""
        self._untold.append(token)

    def fresh_tokens(self) -> tuple[NewTokens, ...]:
        """Those that nobody was told of yet: call `told` once somebody was."""
        return joined(tuple(self._untold))

    def told(self, tokens: Sequence[NewTokens]) -> None:
        """Forget what `fresh_tokens` gave."""
        del self._untold[: sum(len(piece.tokens) for piece in tokens)]

    def work(self, compute: Callable[[], JobResult], keep: Callable[[Claim, JobResult], Succeeded]) -> Ending | None:
        """Compute and store the result. None when there is nothing to say: the claim is lost, or handed back."""
        try:
            result = compute()
            succeeded = keep(self.claim, result)
        except JobCancelled:
            return self._stopped_ending()
        except LensdError as error:
            return Failed(JobError(code=error.code, message=error.message))
        except Exception as error:
            if is_out_of_memory(error):
                return self._out_of_memory()
            # A defect of ours: the traceback is for the log alone, and the client gets a name to find it by.
            correlation_id = secrets.token_hex(8)
            log.exception("job %s failed, correlation id %s", self.claim.job.id, correlation_id)
            return _unexpected(correlation_id)
        return succeeded

    def _stopped_ending(self) -> Ending | None:
        if self._stop is Stop.DEADLINE:
            message = "the job was not finished by its deadline: allow more time, or ask for less at once"
            return Failed(JobError(code=ErrorCode.DEADLINE_EXCEEDED, message=message))
        return Cancelled() if self._stop is Stop.CANCELLED else None

    def _stop_if_told(self) -> None:
        if self._should_stop():
            self.ticket.stop()

    def _out_of_memory(self) -> Ending:
        log.warning("job %s ran out of memory outside the engine", self.claim.job.id)
        message = "the worker ran out of memory on this job: send fewer or shorter prompts, or a smaller sweep"
        return Failed(JobError(code=ErrorCode.OUT_OF_MEMORY, message=message))

    def _should_stop(self) -> bool:
        return self._stop is not None or self._lost or self._handing_back

    def _note_progress(self, done: int, planned: int) -> None:
        self._progress = JobProgress(done=done, planned=planned)


def _unexpected(correlation_id: str) -> Ending:
    message = f"the analysis failed unexpectedly; the operator finds it in the log as {correlation_id}"
    return Failed(JobError(code=ErrorCode.METHOD_FAILED, message=message, correlation_id=correlation_id))
