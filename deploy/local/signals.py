"""Signals that ask the launcher to end."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP act as Ctrl-C does: the block is left with KeyboardInterrupt, so that it can drain.

    Only the first of them: `make` passes on what its whole process group has got already. A second Ctrl-C is meant.
    """
    endings = (signal.SIGTERM, signal.SIGHUP)

    def interrupt(number: int, _frame: FrameType | None) -> None:
        for ending in endings:
            signal.signal(ending, signal.SIG_IGN)
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = {ending: signal.signal(ending, interrupt) for ending in endings}
    try:
        yield
    finally:
        for ending, handler in before.items():
            signal.signal(ending, handler)
