"""What a continuation keeps from step to step: the keys and values of its own positions, interventions included."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor


class PastBudget:
    """Bytes that all continuations under way may keep. Used on the engine's thread alone."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self.nbytes = 0

    def reserve(self, nbytes: int) -> bool:
        """Take `nbytes`, unless that is more than is left."""
        if self.nbytes + nbytes > self._limit:
            return False
        self.nbytes += nbytes
        return True

    def release(self, nbytes: int) -> None:
        self.nbytes -= nbytes


class Past:
    """Keys and values of the first `length` positions, by layer; room for `capacity`, taken with the first that come.

    While the budget has no room the length stays 0: the next step then runs all positions again.
    """

    def __init__(self, capacity: int, budget: PastBudget) -> None:
        self._capacity = capacity
        self._budget = budget
        self._reserved = 0
        self.length = 0
        self.keys: list[Float[Tensor, "kv_head capacity d_head"]] = []
        self.values: list[Float[Tensor, "kv_head capacity d_head"]] = []

    def keep(
        self,
        start: int,
        keys: Sequence[Float[Tensor, "kv_head slot d_head"]],
        values: Sequence[Float[Tensor, "kv_head slot d_head"]],
    ) -> None:
        """Take over what every layer computed for the positions from `start` on."""
        if not self._reserved and not self._make_room(keys, values):
            return
        end = start + keys[0].shape[1]
        for kept, fresh in zip((*self.keys, *self.values), (*keys, *values), strict=True):
            kept[:, start:end] = fresh
        self.length = end

    def forget(self) -> None:
        """Begin again, in the same room."""
        self.length = 0

    def release(self) -> None:
        """Let go of everything."""
        self._budget.release(self._reserved)
        self._reserved = self.length = 0
        self.keys, self.values = [], []

    def _make_room(self, keys: Sequence[Tensor], values: Sequence[Tensor]) -> bool:
        per_position = sum(layer[:, :1].numel() * layer.element_size() for layer in (*keys, *values))
        nbytes = per_position * self._capacity
        if not self._budget.reserve(nbytes):
            return False
        self._reserved = nbytes
        self.keys = [layer.new_empty((layer.shape[0], self._capacity, layer.shape[2])) for layer in keys]
        self.values = [layer.new_empty((layer.shape[0], self._capacity, layer.shape[2])) for layer in values]
        return True
