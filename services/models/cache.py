"""Models in memory: loaded once, kept hot, pinned while in use, bounded by bytes.

The least recently used model that nobody uses makes room. When all room is in use, a newcomer waits for it.
"""

import gc
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from services.contracts.errors import ErrorCode, JobFailed
from services.models.load import LoadedModel

ModelStatus = Literal["loading", "loaded", "unloaded"]


def _ignore(_model_id: str, _status: ModelStatus) -> None:
    pass


@dataclass(eq=False)
class _Entry:
    nbytes: int
    users: int = 0
    model: Future[LoadedModel] = field(default_factory=Future)


class ModelCache:
    """The models of one worker.

    `load` and `size_of` (bytes once loaded) are asked by model id, `load` without any lock held. `announce` hears of
    every change of a model's status.
    """

    def __init__(
        self,
        load: Callable[[str], LoadedModel],
        size_of: Callable[[str], int],
        *,
        limit_bytes: int,
        announce: Callable[[str, ModelStatus], None] = _ignore,
    ) -> None:
        self._load = load
        self._size_of = size_of
        self._limit = limit_bytes
        self._announce = announce
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._changed = threading.Condition()

    @contextmanager
    def use(self, model_id: str) -> Iterator[LoadedModel]:
        """The model, loaded if need be, and pinned for the length of the block.

        Raises:
            JobFailed: `model_unavailable` when it is larger than the whole cache, or does not load.
        """
        entry, first = self._pin(model_id)
        try:
            if first:
                self._fill(model_id, entry)
            yield entry.model.result()
        finally:
            with self._changed:
                entry.users -= 1
                self._changed.notify_all()

    def statuses(self) -> dict[str, Literal["loading", "loaded"]]:
        """Every model that is here or on its way."""
        with self._changed:
            return {
                model_id: "loaded" if entry.model.done() else "loading" for model_id, entry in self._entries.items()
            }

    @property
    def nbytes(self) -> int:
        """Bytes of all models that are here or on their way."""
        return sum(entry.nbytes for entry in self._entries.values())

    def _pin(self, model_id: str) -> tuple[_Entry, bool]:
        """Take the model's place in the cache, making room or waiting for it; says whether it is a new one."""
        nbytes = self._size_of(model_id)
        if nbytes > self._limit:
            message = f"{model_id} takes {nbytes} bytes, this worker's models may take {self._limit} together"
            raise JobFailed(ErrorCode.MODEL_UNAVAILABLE, message)
        with self._changed:
            self._changed.wait_for(lambda: model_id in self._entries or self._make_room(nbytes))
            first = model_id not in self._entries
            entry = self._entries.setdefault(model_id, _Entry(nbytes))
            entry.users += 1
            self._entries.move_to_end(model_id)
            return entry, first

    def _make_room(self, nbytes: int) -> bool:
        idle = [model_id for model_id, entry in self._entries.items() if entry.users == 0]
        while self.nbytes + nbytes > self._limit and idle:
            model_id = idle.pop(0)
            del self._entries[model_id]
            gc.collect()  # modules and hooks refer to each other: without it the memory stays taken for a while
            self._announce(model_id, "unloaded")
        return self.nbytes + nbytes <= self._limit

    def _fill(self, model_id: str, entry: _Entry) -> None:
        """Load the model for everyone who waits for this entry; a failure is theirs too, the next one tries again."""
        self._announce(model_id, "loading")
        try:
            entry.model.set_result(self._load(model_id))
        except BaseException as error:
            with self._changed:
                del self._entries[model_id]
            self._announce(model_id, "unloaded")
            entry.model.set_exception(error)
            raise
        self._announce(model_id, "loaded")
