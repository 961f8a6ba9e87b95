"""The text behind an index's contexts: tokens, how they read, and documents, each read when first needed."""

import json
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.catalogue.feature_file import (
    MAX_VOCABULARY_BYTES,
    PIECE_TOKENS,
    IndexHeader,
    InvalidIndex,
    from_planes,
    inflate,
)

Rows = list[tuple[Any, ...]]
Query = Callable[..., Rows]
"""An SQL query and its parameters to all its rows; raises InvalidIndex."""


def meta(query: Query, name: str) -> bytes:
    """A value of the table `meta`."""
    rows = query("SELECT value FROM meta WHERE name = ?", name)
    if len(rows) != 1 or not isinstance(rows[0][0], bytes):
        raise InvalidIndex(f"the feature index is damaged: it has no {name}")
    return rows[0][0]


class IndexedCorpus:
    """Takes 4 bytes per token, once it is read. What is damaged raises InvalidIndex."""

    def __init__(self, query: Query, header: IndexHeader) -> None:
        self._query, self._header = query, header

    @cached_property
    def vocabulary(self) -> dict[int, str]:
        """How the tokens read that the index mentions."""
        try:
            strings = json.loads(inflate(meta(self._query, "vocabulary"), MAX_VOCABULARY_BYTES))
            return {int(token): str(string) for token, string in strings.items()}
        except (ValueError, AttributeError, RecursionError) as error:
            raise InvalidIndex("the feature index is damaged: its vocabulary cannot be read") from error

    @cached_property
    def tokens(self) -> NDArray[np.uint32]:
        """[token]: all documents, one after another."""
        pieces = [inflate(row[0], 4 * PIECE_TOKENS) for row in self._query("SELECT tokens FROM corpus ORDER BY piece")]
        if any(len(piece) % 4 for piece in pieces) or sum(map(len, pieces)) != 4 * self._header.tokens:
            raise InvalidIndex("the feature index is damaged: its corpus is not as long as it announces")
        corpus = np.concatenate([from_planes(piece, "<u4") for piece in pieces])
        if not set(np.unique(corpus).tolist()) <= self.vocabulary.keys():
            raise InvalidIndex("the feature index is damaged: its corpus has tokens that its vocabulary has not")
        return corpus

    def strings(self, start: int, length: int) -> tuple[str, ...]:
        """How `length` tokens read from token `start` on."""
        tokens = self.tokens[start : start + length].tolist()
        if len(tokens) != length:
            raise InvalidIndex("the feature index is damaged: a context lies outside its corpus")
        return tuple(self.vocabulary[token] for token in tokens)

    def document_at(self, token: int) -> tuple[str, str]:
        """The name and the source of the document that a token belongs to."""
        starts, documents = self._documents
        return documents[int(np.searchsorted(starts, token, side="right")) - 1]

    @cached_property
    def _documents(self) -> tuple[NDArray[np.int64], list[tuple[str, str]]]:
        """Where each begins, and its name and source."""
        rows = self._query("SELECT start, name, source FROM documents ORDER BY document")
        try:
            starts = np.array([int(row[0]) for row in rows], np.int64)
        except (ValueError, TypeError, OverflowError) as error:
            raise InvalidIndex("the feature index is damaged: a document begins nowhere") from error
        if len(rows) != self._header.documents or starts[0] != 0 or bool((np.diff(starts) < 0).any()):
            raise InvalidIndex("the feature index is damaged: its documents are not those that it announces")
        return starts, [(str(row[1]), str(row[2])) for row in rows]
