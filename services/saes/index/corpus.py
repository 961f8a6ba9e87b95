"""The text that an index is made over: documents from a JSONL file, as tokens and as the rows that the model reads.

Each line is {"id", "source", "licence", "text"} and may name an "attribution". A row is a piece of one document, BOS
before it where the SAE's rule says so; a prepended BOS is no token of the corpus.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from services.catalogue.feature_file import MAX_TOKENS
from services.catalogue.operator import CatalogueError, file_sha256
from services.catalogue.tokenizer import Tokenizer
from services.contracts.base import Contract
from services.contracts.errors import LensdError

ROW_TOKENS = 128
"""BOS included: about what most SAEs were trained on."""


class IndexDocument(Contract):
    """One line of the corpus' file."""

    id: Annotated[str, Field(min_length=1, max_length=200)]
    source: Annotated[str, Field(min_length=1, max_length=100)]
    licence: Annotated[str, Field(min_length=1, max_length=200)]
    attribution: Annotated[str, Field(max_length=500)] = ""
    text: Annotated[str, Field(min_length=1)]


@dataclass(frozen=True, eq=False)
class IndexCorpus:
    """`tokens` [token] holds the documents one after another; `starts` [document] where each begins.

    `width` is the length of a row, BOS apart; the last row of a document may be shorter.
    """

    tokens: NDArray[np.uint32]
    starts: NDArray[np.int64]
    names: Sequence[str]
    sources: Sequence[str]
    width: int
    description: str
    sha256: str

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        return np.append(self.starts[1:], len(self.tokens))

    @cached_property
    def document_of(self) -> NDArray[np.int64]:
        """[token]: the document that it belongs to."""
        return np.repeat(np.arange(len(self.starts)), self.ends - self.starts)

    @cached_property
    def rows(self) -> list[tuple[int, int]]:
        """(start, end) of every row, in tokens of the corpus."""
        return [
            (start, min(start + self.width, int(end)))
            for begin, end in zip(self.starts, self.ends, strict=True)
            for start in range(int(begin), int(end), self.width)
        ]

    def window(self, token: int, either_side: int) -> tuple[int, int]:
        """(start, end) of what the model read around a token: never beyond its row."""
        document = self.document_of[token]
        begin = int(self.starts[document])
        row = begin + (token - begin) // self.width * self.width
        return max(row, token - either_side), min(row + self.width, int(self.ends[document]), token + either_side + 1)


def read_corpus(path: Path, tokenizer: Tokenizer, *, bos: bool, limit: int | None, context: int) -> IndexCorpus:
    """Tokenise the documents of `path`, in their order, up to `limit` tokens; the last one is cut there.

    Raises CatalogueError for a file that cannot be read, a line that is no document, and a corpus of too many tokens.
    """
    ids: list[NDArray[np.uint32]] = []
    documents: list[IndexDocument] = []
    left = MAX_TOKENS if limit is None else min(limit, MAX_TOKENS)
    for line, document in _documents(path):
        try:
            tokens = np.array(tokenizer.read_text(document.text, bos=False).ids, np.uint32)
        except LensdError as error:
            raise CatalogueError(f"{path}, line {line}: {error.message}") from error
        if limit is None and len(tokens) > left:
            raise CatalogueError(f"{path} has over {MAX_TOKENS} tokens, more than an index holds: give --tokens")
        ids.append(tokens[:left])
        documents.append(document)
        left -= len(ids[-1])
        if left == 0:
            break
    if not ids:
        raise CatalogueError(f"{path} holds no documents")
    return IndexCorpus(
        tokens=np.concatenate(ids),
        starts=np.cumsum([0, *(len(each) for each in ids[:-1])]),
        names=[document.id for document in documents],
        sources=[document.source for document in documents],
        width=min(ROW_TOKENS, context) - bos,
        description=_description(documents),
        sha256=file_sha256(path),
    )


def _documents(path: Path) -> Iterator[tuple[int, IndexDocument]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                yield number, IndexDocument.model_validate_json(line)
    except (OSError, UnicodeDecodeError) as error:
        raise CatalogueError(f"the corpus {path} cannot be read: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the line"
        raise CatalogueError(f"{path}, line {number}: {where}: {first['msg']}") from error


def _description(documents: Sequence[IndexDocument]) -> str:
    """Each source with its documents, attribution and licence."""
    described: dict[tuple[str, str, str], int] = {}
    for document in documents:
        key = (document.source, document.attribution, document.licence)
        described[key] = described.get(key, 0) + 1
    return "; ".join(
        f"{source} ({count} document{'s' * (count > 1)}): {', '.join(filter(None, (attribution, licence)))}"
        for (source, attribution, licence), count in sorted(described.items())
    )
