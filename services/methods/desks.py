"""Where methods work by themselves, between one wait for the engine and the next: at one of few desks.

The rows of thirty small jobs end together. Thirty threads that then put their results together would take the processor
and the interpreter's lock from the engine's thread, and from each other: all of it can take half as long again.

1. A desk is for computing; a job that waits for the engine leaves its own, and stands in line again afterwards.
2. An owner always leaves as many desks free as it holds: another's job never waits for one owner's.
3. Of those in line jobs in the foreground come first, then owners who hold fewer, then who came first.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field

from services.engine.ticket import JobCancelled, JobTicket

DESKS = 4
"""Two for an owner that is alone: one of its jobs computes while another one's thread wakes up."""


@dataclass(eq=False)
class _InLine:
    ticket: JobTicket
    called: "Future[None]" = field(default_factory=Future)


class Desks:
    """The desks of one worker; jobs are known by their tickets."""

    def __init__(self, desks: int = DESKS) -> None:
        self._desks = desks
        self._line: list[_InLine] = []
        self._seated: set[JobTicket] = set()
        self._lock = threading.Lock()

    @contextmanager
    def seat(self, ticket: JobTicket) -> Iterator[None]:
        """While the job is at work; raises JobCancelled when it is stopped as it waits."""
        self._sit_down(ticket)
        try:
            yield
        finally:
            self._get_up(ticket)

    @contextmanager
    def away(self, ticket: JobTicket) -> Iterator[None]:
        """While a job that may have a desk waits for something else; raises JobCancelled as `seat` does."""
        was_seated = self._get_up(ticket)
        yield
        if was_seated:
            self._sit_down(ticket)

    def _sit_down(self, ticket: JobTicket) -> None:
        entry = _InLine(ticket)
        with self._lock:
            self._line.append(entry)
            self._call()
        try:
            ticket.result_of(entry.called)
        except JobCancelled:
            with self._lock:
                if entry in self._line:
                    self._line.remove(entry)
            self._get_up(ticket)
            raise

    def _get_up(self, ticket: JobTicket) -> bool:
        """Whether it had a desk."""
        with self._lock:
            had_one = ticket in self._seated
            self._seated.discard(ticket)
            self._call()
        return had_one

    def _call(self) -> None:
        """Give desks to those whose turn it is."""
        held = Counter(ticket.owner for ticket in self._seated)
        while eligible := [entry for entry in self._line if held[entry.ticket.owner] < self._desks - held.total()]:
            entry = min(eligible, key=lambda entry: (entry.ticket.background, held[entry.ticket.owner]))
            self._line.remove(entry)
            self._seated.add(entry.ticket)
            held[entry.ticket.owner] += 1
            entry.called.set_result(None)
