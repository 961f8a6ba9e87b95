"""Whose rows run next: jobs take turns, and rows that can share a batch do, whoever asked for them.

1. The job at the head of the line leads; its next rows decide what kind of batch it will be (model, length, depth).
2. Every job with rows of that kind gets an equal part of the batch, at least one row; what a job does not use goes to
   the others in turn.
3. The leader goes to the end of the line.

So a job of one row behind a sweep of ten thousand starts with the next batch, or the one after.
"""

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field

from services.engine.lane import Lane
from services.engine.needs import Needs
from services.engine.outcome import Outcome
from services.engine.ticket import JobTicket
from services.models.load import LoadedModel


@dataclass(frozen=True, eq=False)
class Task:
    """A row that waits.

    Tasks of one `kind` may share a batch, up to a number of `tokens`; a job's tasks go by their `order`. `cost` is in
    token-layers.
    """

    model: LoadedModel
    lane: Lane
    kind: Hashable
    order: tuple[int, ...]
    tokens: int
    cost: int
    ticket: JobTicket
    foreseen: Needs
    future: Future[Outcome] = field(default_factory=Future)


class Scheduler:
    """The line of jobs. Pure bookkeeping: no thread, no clock."""

    def __init__(self) -> None:
        self._line: OrderedDict[JobTicket, OrderedDict[Hashable, deque[Task]]] = OrderedDict()

    def __len__(self) -> int:
        return sum(len(tasks) for kinds in self._line.values() for tasks in kinds.values())

    def tickets(self) -> tuple[JobTicket, ...]:
        """Jobs that wait, the next leader first."""
        return tuple(self._line)

    def add(self, tasks: Iterable[Task]) -> None:
        for task in sorted(tasks, key=lambda task: task.order):
            kinds = self._line.setdefault(task.ticket, OrderedDict())
            kind = (task.kind, task.ticket.id) if task.ticket.alone else task.kind
            kinds.setdefault(kind, deque()).append(task)

    def remove(self, ticket: JobTicket) -> list[Task]:
        """Take all waiting rows of a job out of the line."""
        return [task for tasks in self._line.pop(ticket, {}).values() for task in tasks]

    def next_batch(self, limit: int, *, gradients: int = 0) -> list[Task]:
        """The rows to run next, of one kind, at most `limit` tokens together unless a single row exceeds it.

        `gradients` is the limit for rows with gradients.
        """
        if not self._line:
            return []
        leader, kinds = next(iter(self._line.items()))
        kind = min(kinds, key=lambda kind: kinds[kind][0].order)
        members = [ticket for ticket, kinds in self._line.items() if kind in kinds]
        limit = limit if kinds[kind][0].lane.row.gradients is None else gradients
        batch: list[Task] = []
        for share in (limit / len(members), float(limit)):
            for ticket in members:
                self._take(batch, self._line[ticket].get(kind), share, limit)
        for ticket in members:
            self._tidy(ticket, kind)
        if leader in self._line:
            self._line.move_to_end(leader)
        return batch

    @staticmethod
    def _take(batch: list[Task], waiting: "deque[Task] | None", share: float, limit: int) -> None:
        """Move rows into the batch: the first whatever it costs, then up to the job's share and the batch's limit."""
        taken = 0
        total = sum(task.tokens for task in batch)
        while waiting and (not batch or (taken + waiting[0].tokens <= share and total + waiting[0].tokens <= limit)):
            batch.append(waiting.popleft())
            taken += batch[-1].tokens
            total += batch[-1].tokens

    def _tidy(self, ticket: JobTicket, kind: Hashable) -> None:
        kinds = self._line[ticket]
        if not kinds[kind]:
            del kinds[kind]
        if not kinds:
            del self._line[ticket]
