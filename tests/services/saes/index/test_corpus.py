"""The file of documents that an index is made over: what is read, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from services.catalogue.operator import CatalogueError
from services.saes.index.corpus import IndexCorpus, read_corpus
from tests.services.saes.index.conftest import word_tokenizer


def read(folder: Path, *lines: Any, limit: int | None = None, bos: bool = True, context: int = 512) -> IndexCorpus:
    path = folder / "corpus.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return read_corpus(path, word_tokenizer(folder), bos=bos, limit=limit, context=context)


def document(name: str, text: str, **more: str) -> dict[str, str]:
    return {"id": name, "source": "rivers", "licence": "CC0", "text": text, **more}


def test_documents_are_cut_into_rows_that_leave_room_for_bos(tmp_path: Path) -> None:
    corpus = read(tmp_path, document("long", " the" * 10), document("short", "."), context=4)
    assert corpus.rows == [(0, 3), (3, 6), (6, 9), (9, 10), (10, 11)]
    assert read(tmp_path, document("long", " the" * 10), bos=False, context=4).rows == [(0, 4), (4, 8), (8, 10)]


def test_a_window_ends_with_its_row_on_either_side(tmp_path: Path) -> None:
    corpus = read(tmp_path, document("first", " the" * 7), document("second", " the" * 7), context=6)
    assert corpus.rows == [(0, 5), (5, 7), (7, 12), (12, 14)]
    assert [corpus.window(token, 2) for token in (0, 2, 4, 5, 7, 13)] == [
        (0, 3),
        (0, 5),
        (2, 5),
        (5, 7),
        (7, 10),
        (12, 14),
    ]


def test_the_last_document_is_cut_at_the_limit_of_tokens(tmp_path: Path) -> None:
    documents = [document("first", " the" * 7), document("second", " the" * 7), document("third", ".")]
    corpus = read(tmp_path, *documents, limit=9)
    assert (len(corpus.tokens), list(corpus.names)) == (9, ["first", "second"])


def test_sources_are_described_with_attribution_and_licence(tmp_path: Path) -> None:
    lines = [document("a", "."), document("b", ".", source="sea", attribution="Ann"), document("c", ".")]
    assert read(tmp_path, *lines).description == "rivers (2 documents): CC0; sea (1 document): Ann, CC0"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not JSON", "line 2: the line: Invalid JSON"),
        (document("a", ""), "line 2: text: "),
        ({"id": "a", "source": "s", "text": "."}, "line 2: licence: Field required"),
        (document("a", ".", colour="red"), "line 2: colour: "),
        (document("x" * 201, "."), "line 2: id: "),
    ],
)
def test_a_line_that_is_no_document_is_refused_by_its_number(tmp_path: Path, line: Any, message: str) -> None:
    with pytest.raises(CatalogueError, match=message):
        read(tmp_path, document("fine", "."), line)


def test_a_file_without_documents_or_none_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match="holds no documents"):
        read(tmp_path)
    with pytest.raises(CatalogueError, match="cannot be read"):
        read_corpus(tmp_path / "none.jsonl", word_tokenizer(tmp_path), bos=True, limit=None, context=8)
