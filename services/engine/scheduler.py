"""Whose rows run next: owners take turns, each one's jobs too, and rows that can share a batch do, whoever asked.

1. The owner at the head of the line leads with the first of its jobs, whose next rows decide what kind of batch it
   will be (model, length, depth). No two batches in turn are led by jobs in the background while others wait.
2. Every owner with rows of that kind gets an equal part of the batch, and each of its jobs an equal part of that; the
   leader gets at least one row, and what a job does not use goes to the others in turn. Jobs in the background get no
   part of a batch whose leader is not one of them, which makes it short.
3. The leader goes to the end of its owner's line, the owner to the end of the line of owners.

So a job of one row behind a sweep of ten thousand, or behind a hundred sweeps of one owner, starts with the next batch,
or the one after.
"""

from collections import Counter, OrderedDict, deque
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
        self._owners: OrderedDict[str, None] = OrderedDict()
        self._background_led = False

    def __len__(self) -> int:
        return sum(len(tasks) for kinds in self._line.values() for tasks in kinds.values())

    def tickets(self) -> tuple[JobTicket, ...]:
        """Jobs that wait, each owner's in the order of their turns."""
        return tuple(self._line)

    def add(self, tasks: Iterable[Task]) -> None:
        for task in sorted(tasks, key=lambda task: task.order):
            kinds = self._line.setdefault(task.ticket, OrderedDict())
            self._owners.setdefault(task.ticket.owner)
            kind = (task.kind, task.ticket.id) if task.ticket.alone else task.kind
            kinds.setdefault(kind, deque()).append(task)

    def remove(self, ticket: JobTicket) -> list[Task]:
        """Take all waiting rows of a job out of the line."""
        tasks = [task for tasks in self._line.pop(ticket, {}).values() for task in tasks]
        self._forget_owner_without_jobs(ticket.owner)
        return tasks

    def next_batch(self, limit: int, *, gradients: int = 0) -> list[Task]:
        """The rows to run next, of one kind, at most `limit` tokens together unless a single row exceeds it.

        `gradients` is the limit for rows with gradients.
        """
        if not self._line:
            return []
        leader = self._leader()
        kinds = self._line[leader]
        kind = min(kinds, key=lambda kind: kinds[kind][0].order)
        others = (ticket for ticket, kinds in self._line.items() if kind in kinds and ticket is not leader)
        members = [leader, *(ticket for ticket in others if leader.background or not ticket.background)]
        limit = limit if kinds[kind][0].lane.row.gradients is None else gradients
        jobs_of = Counter(ticket.owner for ticket in members)
        batch: list[Task] = []
        for ticket in members:
            self._take(batch, self._line[ticket].get(kind), limit / len(jobs_of) / jobs_of[ticket.owner], limit)
        for ticket in members:
            self._take(batch, self._line[ticket].get(kind), float(limit), limit)
        self._end_turn(leader)
        for ticket in members:
            self._tidy(ticket, kind)
        return batch

    def _leader(self) -> JobTicket:
        in_turn = [ticket for owner in self._owners for ticket in self._line if ticket.owner == owner]
        foreground = (ticket for ticket in in_turn if self._background_led and not ticket.background)
        return next(foreground, in_turn[0])

    def _end_turn(self, leader: JobTicket) -> None:
        self._background_led = leader.background
        self._line.move_to_end(leader)
        self._owners.move_to_end(leader.owner)

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
            self._forget_owner_without_jobs(ticket.owner)

    def _forget_owner_without_jobs(self, owner: str) -> None:
        if all(ticket.owner != owner for ticket in self._line):
            self._owners.pop(owner, None)
