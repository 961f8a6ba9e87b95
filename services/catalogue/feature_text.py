"""Which features have a context that holds a text: the text is looked up in the corpus, its places in the contexts.

The corpus is read as its tokens are shown, one after another: a character that is split between tokens is not found.
"""

import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_REMEMBERED = 32


class ContextText:
    """Built once per index, with 5 to 10 bytes per token of the corpus and 12 per context.

    `owners`, `starts`, `ends` are [context]: whose it is, and its tokens in the corpus, the end excluded.
    """

    def __init__(
        self,
        tokens: NDArray[np.uint32],
        vocabulary: Mapping[int, str],
        *,
        features: int,
        owners: NDArray[Any],
        starts: NDArray[Any],
        ends: NDArray[Any],
    ) -> None:
        strings = {token: string.lower() for token, string in vocabulary.items()}
        lengths = np.zeros(max(strings, default=0) + 1, np.uint32)
        lengths[list(strings)] = [len(string) for string in strings.values()]
        self._text = "".join([strings[token] for token in tokens.tolist()])
        self._token_ends = np.cumsum(lengths[tokens], dtype=np.uint32)
        self._features, self._owners, self._starts, self._ends = features, owners, starts, ends
        self._remembered: OrderedDict[str, NDArray[np.bool_]] = OrderedDict()
        self._lock = threading.Lock()

    def features_with(self, text: str) -> NDArray[np.bool_]:
        """[feature]: whether any of its contexts holds `text`, in any case."""
        text = text.lower()
        with self._lock:
            if text in self._remembered:
                self._remembered.move_to_end(text)
                return self._remembered[text]
        found = self._search(text)
        with self._lock:
            self._remembered[text] = found
            while len(self._remembered) > _REMEMBERED:
                self._remembered.popitem(last=False)
        return found

    def _search(self, text: str) -> NDArray[np.bool_]:
        found = np.zeros(self._features, np.bool_)
        hits = np.array([match.start() for match in re.finditer(f"(?={re.escape(text)})", self._text)], np.int64)
        if not len(hits) or not text:
            return found if text else ~found
        first = np.searchsorted(self._token_ends, hits, side="right")
        last = np.searchsorted(self._token_ends, hits + len(text) - 1, side="right")
        after = np.searchsorted(first, self._starts, side="left")
        covered = np.append(last, np.iinfo(np.int64).max)[after] < self._ends
        found[self._owners[covered]] = True
        return found
