"""A batch that nobody waits for any more is given up between two blocks, instead of being run to its end.

The engine's thread runs one batch at a time: what the blocks ask here, they ask of that one.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

from services.engine.ticket import JobTicket


class BatchGivenUp(Exception):
    """All jobs that had rows in the batch were cancelled."""


def _never() -> bool:
    return False


_unwanted: ContextVar[Callable[[], bool]] = ContextVar("_unwanted", default=_never)


@contextmanager
def given_up_without(tickets: Sequence[JobTicket]) -> Iterator[None]:
    """What runs in the block is given up once all of `tickets` are cancelled."""
    token = _unwanted.set(lambda: all(ticket.cancelled() for ticket in tickets))
    try:
        yield
    finally:
        _unwanted.reset(token)


def give_up_if_unwanted() -> None:
    """Raises BatchGivenUp. To be called where nothing is half done."""
    if _unwanted.get()():
        raise BatchGivenUp


def give_up_between_blocks(activation: Tensor) -> None:
    """A hook between two blocks: looks on the way there, and on the gradient's way back."""
    give_up_if_unwanted()
    if activation.requires_grad:
        unwanted = _unwanted.get()  # the way back of another device's gradients is another thread's

        def look(_gradient: Tensor) -> None:
            if unwanted():
                raise BatchGivenUp

        activation.register_hook(look)  # type: ignore[no-untyped-call]
