"""Cutting the recipe's sources into passages for an index."""

from pathlib import Path

from services.saes.index.corpus import IndexDocument
from services.saes.recipe.documents import lines, passages
from services.saes.recipe.readers import Document
from services.saes.recipe.sources import Source

SOURCE = Source(
    name="letters",
    archive="debian",
    packages=("letters",),
    licence="CC0",
    attribution="Nobody",
    public_domain=True,
    tokens=1_000,
    read=lambda _root: iter(()),
)


def test_paragraphs_are_joined_until_a_passage_is_long_enough() -> None:
    text = "\n\n".join(["a" * 40, "b" * 70, "c" * 30, "d" * 20])
    found = list(passages(Document("letter", text), characters=100))
    assert [(passage.name, passage.text) for passage in found] == [
        ("letter #1", "a" * 40 + "\n\n" + "b" * 70),
        ("letter #2", "c" * 30 + "\n\n" + "d" * 20),
    ]


def test_a_paragraph_that_is_too_long_is_cut_between_words() -> None:
    words = " ".join(["word"] * 100)
    found = list(passages(Document("letter", words), characters=100))
    assert all(len(passage.text) <= 200 for passage in found)
    assert " ".join(passage.text for passage in found) == words


def test_held_out_documents_come_first_and_the_share_is_kept() -> None:
    documents = [Document(f"letter {number}", ("word " * 500).strip()) for number in range(30)]
    taken = lines(SOURCE, documents, tokens=6_000)
    every = lines(SOURCE, documents, tokens=10**9)
    assert [line["id"] for line in every[: len(taken)]] == [line["id"] for line in taken]
    assert 6_000 * 4.2 <= sum(len(line["text"]) for line in taken) < 6_000 * 4.2 + 4_000
    assert len({line["id"] for line in every}) == len(every)
    (first,) = {line["id"].split(" #")[0] for line in taken[:1]}
    same = [line["id"].startswith(first) for line in every]
    assert all(same[: sum(same)]), "a held-out document's passages come before any other's"


def test_a_line_is_a_document_of_an_index() -> None:
    (line, *_) = lines(SOURCE, [Document("x" * 300, "text")], tokens=10)
    document = IndexDocument.model_validate(line)
    assert (document.source, document.licence, document.attribution) == ("letters", "CC0", "Nobody")
    assert len(document.id) == 200
    assert not Path(document.id).exists()
