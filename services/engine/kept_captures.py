"""Activations that were read before: who asks again for the same site of the same tokens need not wait for the model.

Looking at prompts through an SAE is done over and over: all features first, then one of them, then a contrast. The rows
are the same each time: one site at every position, nothing changed, nothing read out. What they yield is kept, bounded
by bytes, the least recently used first out; and by owner, as base runs are.
"""

from collections import OrderedDict
from dataclasses import replace

from services.engine.lane import Lane, RunKey
from services.engine.outcome import Outcome
from services.engine.row import Capture

_Key = tuple[str, RunKey, Capture]


class KeptCaptures:
    """Used on the engine's thread alone. Who takes an outcome may do to its tensors what it likes."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._outcomes: OrderedDict[_Key, Outcome] = OrderedDict()
        self.nbytes = 0

    def get(self, model: str, lane: Lane) -> Outcome | None:
        """What the lane's row yielded before."""
        key = _key(model, lane)
        if key is None or key not in self._outcomes:
            return None
        self._outcomes.move_to_end(key)
        return _copied(self._outcomes[key])

    def put(self, model: str, lane: Lane, outcome: Outcome) -> None:
        """Keep what the lane's row yielded, if it is of the kind that is asked for again."""
        key = _key(model, lane)
        if key is None or _nbytes(outcome) > self._limit:
            return
        replaced = self._outcomes.pop(key, None)
        self.nbytes += _nbytes(outcome) - (_nbytes(replaced) if replaced else 0)
        self._outcomes[key] = _copied(outcome)
        while self.nbytes > self._limit:
            _, gone = self._outcomes.popitem(last=False)
            self.nbytes -= _nbytes(gone)


def _key(model: str, lane: Lane) -> _Key | None:
    """None for a row that does more than read one site at every position."""
    row = lane.row
    if row.interventions or row.readout or row.gradients or lane.past or len(row.captures) != 1:
        return None
    return None if row.captures[0].positions else (model, lane.trunk, row.captures[0])


def _copied(outcome: Outcome) -> Outcome:
    return replace(outcome, captures={capture: taken.clone() for capture, taken in outcome.captures.items()})


def _nbytes(outcome: Outcome) -> int:
    return sum(taken.nbytes for taken in outcome.captures.values())
