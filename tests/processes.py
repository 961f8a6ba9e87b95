"""What tests of real processes share."""

import time
from collections.abc import Callable

import psutil


def eventually(holds: Callable[[], object], within_s: float = 15) -> bool:
    """Whether `holds` comes true in time."""
    give_up_at = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > give_up_at:
            return False
        time.sleep(0.02)
    return True


def has_ended(pid: int) -> bool:
    """Whether the process runs no more; one that only waits to be reaped by its parent has ended."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
