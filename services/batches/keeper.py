"""The keeper of batches: a thread in every gateway process that does one piece of work after another.

Batches take turns. A turn is a lease with a fencing token: what a keeper says late, after its lease, is refused, and
when a process dies with a turn, another keeper, or the same process started again, goes on when the lease is over.
"""

import logging
import threading

from services.batches.pace import Pace
from services.batches.record import TurnLost
from services.batches.store import BatchStore
from services.batches.work import BatchWork
from services.contracts.errors import Unavailable

IDLE_S = 0.25
AFTER_TROUBLE_S = 2.0

_log = logging.getLogger(__name__)


class Keeper:
    """Works until stopped; `rest` is that of `Pace`."""

    def __init__(self, batches: BatchStore, work: BatchWork, rest: float) -> None:
        self._batches = batches
        self._work = work
        self._stopping = threading.Event()
        self._pace = Pace(rest, self._stopping.is_set)
        self._thread = threading.Thread(target=self._go_round, name="keeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(timeout=5)

    def turn(self) -> bool:
        """One piece of work for the batch that has waited longest; whether there was one. Raises Unavailable."""
        turn = self._batches.take()
        if turn is None:
            return False
        try:
            self._batches.put_back(turn, self._work.do(turn, self._pace))
        except TurnLost:
            _log.debug("%s went on without this keeper", turn.batch.id)
        return True

    def _go_round(self) -> None:
        pause_s = 0.0
        while not self._stopping.wait(pause_s):
            try:
                pause_s = 0.0 if self.turn() else IDLE_S
            except Unavailable as error:
                _log.warning("the keeper of batches waits: %s", error.message)
                pause_s = AFTER_TROUBLE_S
            except Exception:
                _log.exception("a keeper's turn failed")
                pause_s = AFTER_TROUBLE_S
