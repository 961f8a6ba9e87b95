"""SAEs in memory, bounded by bytes: the least recently used leaves first.

An SAE is immutable, so one that is taken off the shelf lives on for as long as a job still holds it. Until then it
counts, and who asks for it again gets the same one: no SAE is ever in memory twice.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from weakref import WeakValueDictionary

from services.saes.sae import Sae


class SaeShelf:
    """Loads an SAE when it is first asked for; several that ask at once wait for one loading."""

    def __init__(self, load: Callable[[str], Sae], limit_bytes: int) -> None:
        self._load = load
        self._limit_bytes = limit_bytes
        self._saes: OrderedDict[str, Sae] = OrderedDict()
        self._alive: WeakValueDictionary[str, Sae] = WeakValueDictionary()
        self._lock = threading.Lock()

    def get(self, sae_id: str) -> Sae:
        """The SAE, loaded if need be; raises whatever its loading raises."""
        with self._lock:
            sae = self._alive.get(sae_id) or self._load(sae_id)
            self._saes[sae_id] = self._alive[sae_id] = sae
            self._saes.move_to_end(sae_id)
            while len(self._saes) > 1 and sum(map(_nbytes, self._alive.values())) > self._limit_bytes:
                self._saes.popitem(last=False)
            return sae


def _nbytes(sae: Sae) -> int:
    return sum(tensor.nbytes for tensor in sae.tensors())
