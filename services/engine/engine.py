"""The engine's door: hand it rows, get futures.

One thread per device owns the models and everything that touches them or autograd. Methods run in threads of their own
and never see a hook, a batch or a pad token.
"""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from services.engine.outcome import Outcome
from services.engine.row import Row
from services.engine.ticket import JobTicket
from services.models.load import LoadedModel


@dataclass(frozen=True)
class EngineLimits:
    """Bounds of one batch and of what is kept between batches.

    `batch_tokens` counts padding; `threads` is torch's intra-op thread count.
    """

    batch_tokens: int = 2_048
    base_run_bytes: int = 512 * 2**20
    threads: int = 2


class Engine:
    """Runs rows of any number of jobs on any number of models, on one thread."""

    def __init__(self, limits: EngineLimits | None = None) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def submit(self, model: LoadedModel, rows: Sequence[Row], *, job: JobTicket) -> list[Future[Outcome]]:
        """Queue `rows` behind nobody's sweep: jobs take turns. Returns at once, one future per row.

        A future raises JobCancelled once the job is cancelled, `InvalidRow` for a row the model cannot run,
        JobFailed with `out_of_memory` for one that does not fit even alone, or whatever else its own row raised.
        """
        raise NotImplementedError

    def run(self, model: LoadedModel, rows: Sequence[Row], *, job: JobTicket) -> list[Outcome]:
        """Submit `rows` and wait for all of them; the first failure is raised."""
        raise NotImplementedError

    def close(self) -> None:
        """Finish the batch that is running, cancel what waits, end the thread."""
        raise NotImplementedError
