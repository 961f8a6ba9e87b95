"""The training and held-out text, as rows of tokens.

1. Fetch every source's packages with the system's own clients (apt-get, pip) and unpack them.
2. Read documents; hold out whole documents, chosen by a hash of their names.
3. Tokenise, cut into rows of `context` tokens that each begin with BOS, shuffle with the seed, cap per source.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from services.saes.recipe.packages import fetch
from services.saes.recipe.readers import Document
from services.saes.recipe.settings import Recipe
from services.saes.recipe.sources import SOURCES

HELDOUT_FRACTION = 1 / 24

Tokens = NDArray[np.int32]


@dataclass(frozen=True)
class Split:
    """Rows of tokens [row, context], each beginning with BOS, and the index in `SOURCES` of every row."""

    tokens: Tokens
    source: NDArray[np.int32]


@dataclass(frozen=True)
class Corpus:
    """`facts` lists the sources as the card prints them: packages, sha256, licence, documents and tokens taken."""

    train: Split
    heldout: Split
    facts: list[dict[str, Any]]


@dataclass(frozen=True)
class RowCutter:
    """Cuts documents into rows. A document's last, shorter piece is dropped; no row spans two documents."""

    tokenizer: Tokenizer
    bos: int
    context: int
    rng: np.random.Generator

    def rows(self, documents: list[Document], cap: float) -> Tokens:
        """A random choice of at most `cap` tokens of rows."""
        width = self.context - 1
        pieces = []
        for encoding in self.tokenizer.encode_batch(
            [document.text for document in documents], add_special_tokens=False
        ):
            ids = np.array(encoding.ids, dtype=np.int32)
            pieces.append(ids[: len(ids) // width * width].reshape(-1, width))
        rows = self.rng.permutation(np.concatenate(pieces))[: int(cap) // self.context]
        return np.concatenate([np.full((len(rows), 1), self.bos, dtype=np.int32), rows], axis=1)


def build_corpus(recipe: Recipe, tokenizer_path: Path, bos_token_id: int, work_dir: Path) -> Corpus:
    """Reads the corpus from `work_dir` if it was built before, else builds and stores it there."""
    stored = work_dir / "corpus.npz"
    if not stored.exists():
        work_dir.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(recipe.seed)
        cutter = RowCutter(Tokenizer.from_file(str(tokenizer_path)), bos_token_id, recipe.context, rng)
        train, heldout, facts = _build(cutter, work_dir / "packages")
        (work_dir / "corpus.json").write_text(json.dumps(facts), encoding="utf-8")
        np.savez(
            stored,
            train=train.tokens,
            train_source=train.source,
            heldout=heldout.tokens,
            heldout_source=heldout.source,
        )
    with np.load(stored) as arrays:
        return Corpus(
            Split(arrays["train"], arrays["train_source"]),
            Split(arrays["heldout"], arrays["heldout_source"]),
            json.loads((work_dir / "corpus.json").read_text(encoding="utf-8")),
        )


def _build(cutter: RowCutter, packages_dir: Path) -> tuple[Split, Split, list[dict[str, Any]]]:
    train: list[Split] = []
    heldout: list[Split] = []
    facts = []
    for index, source in enumerate(SOURCES):
        folders, archives = fetch(source, packages_dir)
        documents = [document for folder in folders for document in source.read(folder)]
        train_documents, heldout_documents = hold_out(documents)
        train_rows = cutter.rows(train_documents, source.tokens)
        heldout_rows = cutter.rows(heldout_documents, source.tokens * HELDOUT_FRACTION)
        train.append(Split(train_rows, np.full(len(train_rows), index, dtype=np.int32)))
        heldout.append(Split(heldout_rows, np.full(len(heldout_rows), index, dtype=np.int32)))
        facts.append(
            {
                "name": source.name,
                "licence": source.licence,
                "attribution": source.attribution,
                "archive": source.archive,
                "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in archives},
                "train_documents": len(train_documents),
                "train_tokens": train_rows.size,
                "heldout_documents": [document.name for document in heldout_documents],
                "heldout_tokens": heldout_rows.size,
            }
        )
        print(f"corpus: {source.name}: {train_rows.size} training tokens, {heldout_rows.size} held out", flush=True)
    return _shuffled(train, cutter.rng), _shuffled(heldout, cutter.rng), facts


def hold_out(documents: list[Document]) -> tuple[list[Document], list[Document]]:
    """Splits documents into (train, held out): in the order of their names' hashes, until 1/24 of the text is out."""
    total = sum(len(document.text) for document in documents)
    ordered = sorted(documents, key=lambda document: hashlib.sha256(document.name.encode()).digest())
    held: list[Document] = []
    while sum(len(document.text) for document in held) < total * HELDOUT_FRACTION:
        held.append(ordered[len(held)])
    return ordered[len(held) :], held


def _shuffled(parts: list[Split], rng: np.random.Generator) -> Split:
    tokens = np.concatenate([part.tokens for part in parts])
    order = rng.permutation(len(tokens))
    return Split(tokens[order], np.concatenate([part.source for part in parts])[order])
