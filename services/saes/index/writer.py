"""Writing an index file: whole or not at all, and the same bytes for the same content."""

import json
import sqlite3
import zlib
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path

import numpy as np

from services.catalogue.feature_file import (
    APPLICATION_ID,
    FORMAT_VERSION,
    PAGE_BYTES,
    PIECE_TOKENS,
    SCHEMA,
    FeatureRecord,
    IndexHeader,
    pack_feature,
    planes,
)
from services.saes.index.corpus import IndexCorpus


def write_index(
    path: Path,
    header: IndexHeader,
    corpus: IndexCorpus,
    records: Iterable[FeatureRecord],
    token_string: Callable[[int], str],
) -> None:
    """Write the index beside `path` and put it there when it is complete. `records` come in the order of features."""
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        with closing(sqlite3.connect(partial)) as connection, connection:
            connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
            connection.execute("PRAGMA journal_mode = OFF")
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
            connection.executescript(SCHEMA)
            _write_corpus(connection, corpus)
            mentioned = set(np.unique(corpus.tokens).tolist())
            for feature, record in enumerate(records):
                mentioned.update(record.promoted.ids.tolist(), record.suppressed.ids.tolist())
                connection.execute(
                    "INSERT INTO features VALUES (?, ?, ?, ?, ?, ?, ?)", (feature, *pack_feature(record))
                )
            vocabulary = json.dumps({token: token_string(token) for token in sorted(mentioned)}, ensure_ascii=False)
            _write_meta(connection, "vocabulary", zlib.compress(vocabulary.encode(), 9))
            _write_meta(connection, "header", header.model_dump_json().encode())
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


def _write_corpus(connection: sqlite3.Connection, corpus: IndexCorpus) -> None:
    for piece, start in enumerate(range(0, len(corpus.tokens), PIECE_TOKENS)):
        tokens = corpus.tokens[start : start + PIECE_TOKENS].astype("<u4")
        connection.execute("INSERT INTO corpus VALUES (?, ?)", (piece, zlib.compress(planes(tokens), 9)))
    documents = zip(corpus.names, corpus.sources, corpus.starts.tolist(), strict=True)
    connection.executemany(
        "INSERT INTO documents VALUES (?, ?, ?, ?)", ((number, *document) for number, document in enumerate(documents))
    )


def _write_meta(connection: sqlite3.Connection, name: str, value: bytes) -> None:
    connection.execute("INSERT INTO meta VALUES (?, ?)", (name, value))
