"""`python -m services.saes.recipe.documents --packages DIR --out FILE`: text for feature indexes, from the sources.

1. Read every source's documents, held-out ones first, and cut them into passages at the ends of paragraphs;
2. take each source's passages in the order of their names' hashes up to its share of the tokens;
3. mix the sources and write one JSON object a line: id, source, licence, attribution, text.
"""

import argparse
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from services.saes.recipe.corpus import hold_out
from services.saes.recipe.packages import fetch
from services.saes.recipe.readers import Document
from services.saes.recipe.sources import SOURCES, Source

PASSAGE_CHARACTERS = 2_000
CHARACTERS_PER_TOKEN = 4.2


def passages(document: Document, characters: int = PASSAGE_CHARACTERS) -> Iterator[Document]:
    """Whole paragraphs joined until they are `characters` long; a paragraph of twice that is cut between words."""
    pieces: list[str] = []
    part = 0
    for paragraph in (piece for whole in document.text.split("\n\n") for piece in _bounded(whole, 2 * characters)):
        pieces.append(paragraph)
        if sum(map(len, pieces)) >= characters:
            part += 1
            yield Document(f"{document.name} #{part}", "\n\n".join(pieces))
            pieces = []
    if any(piece.strip() for piece in pieces):
        yield Document(f"{document.name} #{part + 1}", "\n\n".join(pieces))


def _bounded(paragraph: str, most: int) -> Iterator[str]:
    while len(paragraph) > most:
        cut = paragraph.rfind(" ", 1, most)
        cut = most if cut < 0 else cut
        yield paragraph[:cut]
        paragraph = paragraph[cut:].lstrip()
    if paragraph:
        yield paragraph


def lines(source: Source, documents: Sequence[Document], tokens: int) -> list[dict[str, Any]]:
    """The passages taken from one source, about `tokens` tokens of them: held-out documents' first."""
    train, held = hold_out(list(documents))
    left = tokens * CHARACTERS_PER_TOKEN
    taken: list[dict[str, Any]] = []
    for group in (held, train):
        for passage in sorted((passage for each in group for passage in passages(each)), key=_hash):
            if left <= 0:
                return taken
            left -= len(passage.text)
            taken.append(
                {
                    "id": f"{source.name}: {passage.name}"[:200],
                    "source": source.name,
                    "licence": source.licence,
                    "attribution": source.attribution,
                    "text": passage.text,
                }
            )
    return taken


def write_documents(packages: Path, out: Path, tokens: int) -> None:
    """Write about `tokens` tokens, shared among the sources as the recipe shares its own."""
    whole = sum(source.tokens for source in SOURCES)
    taken: list[dict[str, Any]] = []
    for source in SOURCES:
        folders, _ = fetch(source, packages)
        documents = [document for folder in folders for document in source.read(folder)]
        chosen = lines(source, documents, round(tokens * source.tokens / whole))
        print(f"documents: {source.name}: {len(chosen)} passages", flush=True)
        taken += chosen
    taken.sort(key=lambda line: hashlib.sha256(line["id"].encode()).digest())
    out.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in taken), encoding="utf-8")


def _hash(passage: Document) -> bytes:
    return hashlib.sha256(passage.name.encode()).digest()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m services.saes.recipe.documents", description=__doc__)
    parser.add_argument("--packages", type=Path, required=True, help="where the sources' packages are, or go")
    parser.add_argument("--out", type=Path, required=True, help="the JSONL file to write")
    parser.add_argument("--tokens", type=int, default=400_000, help="about how many to take")
    arguments = parser.parse_args()
    write_documents(arguments.packages, arguments.out, arguments.tokens)


if __name__ == "__main__":
    main()
