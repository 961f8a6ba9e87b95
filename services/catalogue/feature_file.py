"""The file of a feature index: its tables, how a feature is packed into a row, and how a damaged file is refused.

One SQLite database, small because nothing is stored twice:

    meta(name, value)           `header`: IndexHeader as JSON; `vocabulary`: {token id: string} as JSON, zlib
    corpus(piece, tokens)       the documents' token ids one after another, PIECE_TOKENS to a piece, zlib
    documents(document, name, source, start)            `start` counts tokens of the corpus
    features(feature, active_tokens, max_activation, mean_activation, places, promoted, detail)

A context is a place in the corpus (`places`) and the feature's activations there (in `detail`), as float16 fractions of
its largest: exact to 0.05 %. Integers and floats are little-endian; within zlib they lie byte plane by byte plane.
"""

import hashlib
import sqlite3
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from services.contracts.base import Contract
from services.contracts.errors import ErrorCode, LensdError

APPLICATION_ID = 0x6C656E73  # "lens"
FORMAT_VERSION = 1
PAGE_BYTES = 16_384
PIECE_TOKENS = 65_536
MAX_TOKENS = 1 << 24
MAX_DETAIL_BYTES = 1 << 20
MAX_VOCABULARY_BYTES = 1 << 26
BANDS = ("top", "upper", "middle", "lower")

SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE corpus (piece INTEGER PRIMARY KEY, tokens BLOB NOT NULL);
CREATE TABLE documents (
    document INTEGER PRIMARY KEY, name TEXT NOT NULL, source TEXT NOT NULL, start INTEGER NOT NULL
);
CREATE TABLE features (
    feature INTEGER PRIMARY KEY,
    active_tokens INTEGER NOT NULL, max_activation REAL NOT NULL, mean_activation REAL NOT NULL,
    places BLOB NOT NULL, promoted BLOB NOT NULL, detail BLOB NOT NULL
);
"""

Floats = NDArray[np.float32]
Counts = NDArray[np.uint32]


class InvalidIndex(LensdError):
    """The index is missing, damaged, not the expected one, or of another version."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.SAE_UNAVAILABLE, message)


class IndexHeader(Contract):
    """What an index says of itself; IndexFacts without the file's own sha256."""

    features: int = Field(ge=1, le=1 << 22)
    tokens: int = Field(ge=1, le=MAX_TOKENS)
    tokens_over_norm: int = Field(ge=0)
    documents: int = Field(ge=1, le=MAX_TOKENS)
    corpus: str
    corpus_sha256: str
    sae_sha256: str


@dataclass(frozen=True, eq=False)
class Ranked:
    """Tokens or features in an order, each with its figure: a logit, a cosine, a Jaccard index."""

    ids: Counts
    values: Floats

    def pairs(self) -> list[tuple[int, float]]:
        return list(zip(self.ids.tolist(), self.values.tolist(), strict=True))


@dataclass(frozen=True, eq=False)
class Places:
    """Where a feature's contexts lie, [context] each. `bands` index BANDS, ascending; `peaks` count from `starts`."""

    starts: Counts
    lengths: NDArray[np.uint8]
    peaks: NDArray[np.uint8]
    bands: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class FeatureRecord:
    """All that is stored of one feature. `activations` are its contexts' tokens' figures, one context after another.

    `histogram` has equal bins from 0 to `max_activation`, the last one with its upper edge; none for a dead feature.
    """

    active_tokens: int
    max_activation: float
    mean_activation: float
    histogram: Counts
    places: Places
    activations: Floats
    promoted: Ranked
    suppressed: Ranked
    nearest_by_decoder: Ranked
    nearest_by_coactivation: Ranked


def planes(array: NDArray[Any]) -> bytes:
    """The array's bytes, all first bytes before all second ones: zlib then finds the empty high bytes."""
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return little.view(np.uint8).reshape(len(array), -1).T.tobytes() if len(array) else b""


def from_planes(data: bytes, dtype: str) -> NDArray[Any]:
    """The reverse of `planes`."""
    width = np.dtype(dtype).itemsize
    return np.frombuffer(data, np.uint8).reshape(width, -1).T.copy().view(dtype).reshape(-1)


def inflate(data: bytes, limit: int) -> bytes:
    """Decompress at most `limit` bytes; raises InvalidIndex for more, or for what is no whole zlib stream."""
    stream = zlib.decompressobj()
    try:
        inflated = stream.decompress(data, limit)
    except (zlib.error, TypeError) as error:
        raise InvalidIndex("the feature index is damaged: a part of it cannot be decompressed") from error
    if not stream.eof:
        raise InvalidIndex(f"the feature index is damaged: a part of it is cut short, or over {limit} bytes")
    return inflated


def pack_feature(record: FeatureRecord) -> tuple[int, float, float, bytes, bytes, bytes]:
    """A feature's columns but the first."""
    places, promoted = record.places, record.promoted
    lists = (record.suppressed, record.nearest_by_decoder, record.nearest_by_coactivation)
    fractions = (record.activations / (record.max_activation or 1.0)).astype("<f2")
    fired = record.activations > 0
    detail = b"".join(
        (
            struct.pack("<4BI", len(record.histogram), *(len(each.ids) for each in lists), len(fractions)),
            planes(record.histogram.astype("<u4")),
            planes(np.concatenate([each.ids for each in lists]).astype("<u4")),
            planes(record.suppressed.values.astype("<f4")),
            planes(np.concatenate([each.values for each in lists[1:]]).astype("<f2")),
            np.packbits(fired).tobytes(),
            planes(fractions[fired]),
        )
    )
    return (
        record.active_tokens,
        record.max_activation,
        record.mean_activation,
        bytes(np.bincount(places.bands, minlength=len(BANDS)).astype(np.uint8))
        + places.starts.astype("<u4").tobytes()
        + places.lengths.tobytes()
        + places.peaks.tobytes(),
        promoted.ids.astype("<u4").tobytes() + promoted.values.astype("<f4").tobytes(),
        zlib.compress(detail, 9),
    )


def unpack_places(data: bytes) -> Places:
    """The column `places`; raises ValueError when it is not whole."""
    counts = np.frombuffer(data, np.uint8, len(BANDS))
    total = int(counts.sum())
    if len(data) != len(BANDS) + 6 * total:
        raise ValueError("places of another length than announced")
    return Places(
        starts=np.frombuffer(data, "<u4", total, len(BANDS)),
        lengths=np.frombuffer(data, np.uint8, total, len(BANDS) + 4 * total),
        peaks=np.frombuffer(data, np.uint8, total, len(BANDS) + 5 * total),
        bands=np.repeat(np.arange(len(BANDS), dtype=np.uint8), counts),
    )


def unpack_promoted(data: bytes) -> Ranked:
    """The column `promoted`; raises ValueError when it is not whole."""
    half = len(data) // 2
    return Ranked(np.frombuffer(data[:half], "<u4"), np.frombuffer(data[half:], "<f4"))


def unpack_feature(columns: tuple[int, float, float, bytes, bytes, bytes]) -> FeatureRecord:
    """A feature from its columns; raises InvalidIndex when they do not fit together."""
    try:
        return _unpacked(columns)
    except (ValueError, TypeError, struct.error) as error:
        raise InvalidIndex("the feature index is damaged: a feature's row does not fit together") from error


def _unpacked(columns: tuple[int, float, float, bytes, bytes, bytes]) -> FeatureRecord:
    active, largest, mean, places, promoted, detail = columns
    data = inflate(detail, MAX_DETAIL_BYTES)
    bins, suppressed, decoder, coactive, tokens = struct.unpack_from("<4BI", data)
    cursor = struct.calcsize("<4BI")

    def take(dtype: str, count: int) -> NDArray[Any]:
        nonlocal cursor
        start, cursor = cursor, cursor + count * np.dtype(dtype).itemsize
        if cursor > len(data):
            raise ValueError("a row that is too short")
        return from_planes(data[start:cursor], dtype)

    histogram = take("<u4", bins)
    ids = take("<u4", suppressed + decoder + coactive)
    logits = take("<f4", suppressed)
    similarities = take("<f2", decoder + coactive).astype(np.float32)
    fired = np.unpackbits(take("|u1", -(-tokens // 8)), count=tokens).astype(bool)
    activations = np.zeros(tokens, np.float32)
    activations[fired] = take("<f2", int(fired.sum())).astype(np.float32) * np.float32(largest)
    where = unpack_places(places)
    if int(where.lengths.sum()) != tokens or bool((where.peaks >= where.lengths).any()):
        raise ValueError("contexts of another length than announced")
    return FeatureRecord(
        active_tokens=active,
        max_activation=largest,
        mean_activation=mean,
        histogram=histogram,
        places=where,
        activations=activations,
        promoted=unpack_promoted(promoted),
        suppressed=Ranked(ids[:suppressed], logits),
        nearest_by_decoder=Ranked(ids[suppressed : suppressed + decoder], similarities[:decoder]),
        nearest_by_coactivation=Ranked(ids[suppressed + decoder :], similarities[decoder:]),
    )


def open_database(path: Path, expected_sha256: str | None) -> tuple[sqlite3.Connection, str]:
    """The file opened read-only, and its sha256; raises InvalidIndex when it is not a whole index of this version."""
    try:
        with path.open("rb") as file:
            _check_header(file.read(100), path)
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InvalidIndex(f"the feature index {path.name} cannot be read") from error
    if expected_sha256 is not None and sha256 != expected_sha256:
        raise InvalidIndex(f"the feature index has sha256 {sha256}, expected {expected_sha256}")
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True, check_same_thread=False)
    connection.execute("PRAGMA trusted_schema = OFF")
    return connection, sha256


def _check_header(header: bytes, path: Path) -> None:
    if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
        raise InvalidIndex(f"{path.name} is no feature index: it is not an SQLite file")
    (page_bytes,) = struct.unpack_from(">H", header, 16)
    pages, version, application = (struct.unpack_from(">I", header, place)[0] for place in (28, 60, 68))
    if application != APPLICATION_ID or version != FORMAT_VERSION:
        raise InvalidIndex(f"{path.name} is no feature index of version {FORMAT_VERSION}: make it again by index-sae")
    if pages * page_bytes != path.stat().st_size:
        raise InvalidIndex(
            f"{path.name} has {path.stat().st_size} bytes, its header announces {pages * page_bytes}: "
            "truncated or padded"
        )
