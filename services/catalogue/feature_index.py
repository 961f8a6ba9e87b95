"""Reading a feature index without torch: the facts, one feature's card, filtered and sorted lists.

1. `open_index` checks the file and reads one line of numbers per feature into memory;
2. the corpus, the contexts' places and the promoted tokens are read when they are first needed, and kept;
3. a card or a line of a list is one row of the file.

An index may be used by many threads at once.
"""

import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from services.catalogue.catalogue import Catalogue
from services.catalogue.feature_corpus import IndexedCorpus, Rows, meta
from services.catalogue.feature_file import (
    BANDS,
    FeatureRecord,
    IndexHeader,
    InvalidIndex,
    Ranked,
    open_database,
    unpack_feature,
    unpack_places,
    unpack_promoted,
)
from services.catalogue.feature_indexes import FeatureFilter, FeaturePage, FeatureSort, SortKey
from services.catalogue.feature_text import ContextText
from services.contracts.errors import ErrorCode, NotFound, Refused
from services.contracts.feature_card import FeatureCard, FeatureContext, FeatureSummary, Histogram, NearFeature
from services.contracts.features import PromotedToken
from services.contracts.sae import IndexFacts

_COLUMNS = "active_tokens, max_activation, mean_activation, places, promoted, detail"

Column = TypeVar("Column")


def open_index(path: Path, *, sae_id: str | None = None, expected_sha256: str | None = None) -> "FeatureIndex":
    """Open the index at `path`; its cards bear the name `sae_id`, else that of its folder, which is the SAE's.

    Raises InvalidIndex for a file that is missing, damaged, not the expected one, or of another version.
    """
    connection, sha256 = open_database(path, expected_sha256)
    try:
        return FeatureIndex(connection, sha256, sae_id or path.resolve().parent.name)
    except BaseException:
        connection.close()
        raise


def open_prepared(catalogue: Catalogue, path: Path) -> "FeatureIndex":
    """The index of a served SAE, in its folder of the store: the very file that was prepared with it."""
    sae_id = path.parent.name
    facts = catalogue.sae(sae_id).index
    if facts is None:
        raise InvalidIndex(f"the feature index of {sae_id} was not prepared with it: run `lensd-worker prepare`")
    return open_index(path, sae_id=sae_id, expected_sha256=facts.sha256)


class FeatureIndex:
    """An open index: see `open_index`."""

    def __init__(self, connection: sqlite3.Connection, sha256: str, sae_id: str) -> None:
        self._connection = connection
        self._lock = threading.RLock()
        try:
            header = IndexHeader.model_validate_json(meta(self._query, "header"))
        except ValidationError as error:
            raise InvalidIndex("the feature index is damaged: its header does not hold what it must") from error
        self.sae = sae_id
        self.features = header.features
        self.facts = IndexFacts(**header.model_dump(exclude={"features"}), sha256=sha256)
        self._figures = self._read_numbers(header)
        self._corpus = IndexedCorpus(self._query, header)
        self._orders: dict[FeatureSort, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}

    def card(self, index: int) -> FeatureCard:
        """Everything known of one feature, labels apart; raises NotFound(UNKNOWN_FEATURE)."""
        self._refuse_unknown(index)
        record = self._records([index])[index]
        return FeatureCard(
            sae=self.sae,
            index=index,
            density=float(self._figures["density"][index]),
            max_activation=record.max_activation,
            mean_activation=record.mean_activation,
            active_tokens=record.active_tokens,
            histogram=_histogram(record),
            contexts=tuple(self._contexts(record, len(record.places.starts))),
            promoted=self._tokens(record.promoted),
            suppressed=self._tokens(record.suppressed),
            nearest_by_decoder=_near(record.nearest_by_decoder),
            nearest_by_coactivation=_near(record.nearest_by_coactivation),
            corpus=self.facts,
        )

    def list(self, where: FeatureFilter, sort: FeatureSort, cursor: str | None, limit: int) -> FeaturePage:
        """One page of the features that match; those that tie come in the order of their indices.

        Raises Refused(INVALID_REQUEST) for a cursor that no page of this list came with.
        """
        order, rank = self._order(sort)
        matching = order[self._mask(where)[order]]
        start = 0
        if cursor is not None:
            start = int(np.searchsorted(rank[matching], rank[self._last_seen(cursor)], side="right"))
        chosen = [int(index) for index in matching[start : start + limit]]
        records = self._records(chosen)
        more = start + limit < len(matching)
        summaries = tuple(self._summary(index, records[index]) for index in chosen)
        return FeaturePage(summaries, str(chosen[-1]) if chosen and more else None)

    def check(self) -> None:
        """Read every row; raises InvalidIndex when one is damaged."""
        for index in range(self.features):
            self.card(index)

    def close(self) -> None:
        self._connection.close()

    def _read_numbers(self, header: IndexHeader) -> dict[SortKey, NDArray[np.float64]]:
        """[feature] each: what lists are sorted by and most filters ask for."""
        columns = "feature, active_tokens, max_activation, mean_activation"
        rows = self._query(f"SELECT {columns} FROM features ORDER BY feature")  # noqa: S608 - our own names
        try:
            numbers = np.array(rows, dtype=np.float64).reshape(-1, 4)
        except (ValueError, TypeError) as error:
            raise InvalidIndex("the feature index is damaged: a feature's figures are not numbers") from error
        indices, active, largest, mean = numbers.T
        within_norm = header.tokens - header.tokens_over_norm
        if (
            not np.array_equal(indices, np.arange(header.features))
            or not (np.isfinite(numbers).all() and (numbers >= 0).all())
            or bool((active > within_norm).any())
        ):
            raise InvalidIndex(f"the feature index is damaged: it does not hold {header.features} sound features")
        density = active / max(1, within_norm)
        return {"index": indices, "density": density, "max_activation": largest, "mean_activation": mean}

    def _last_seen(self, cursor: str) -> int:
        """The feature that the page before ended with."""
        if not cursor.isascii() or not cursor.isdecimal() or len(cursor) > 8 or int(cursor) >= self.features:
            raise Refused(ErrorCode.INVALID_REQUEST, "this cursor is not one that a page of these features came with")
        return int(cursor)

    def _refuse_unknown(self, index: int) -> None:
        if not 0 <= index < self.features:
            message = f"feature {index} does not exist: {self.sae} has features 0..{self.features - 1}"
            raise NotFound(ErrorCode.UNKNOWN_FEATURE, message)

    # Filtering and sorting

    def _mask(self, where: FeatureFilter) -> NDArray[np.bool_]:
        mask = np.ones(self.features, np.bool_)
        bounds: tuple[tuple[NDArray[np.float64], float | None, Callable[..., Any]], ...] = (
            (self._figures["density"], where.min_density, np.greater_equal),
            (self._figures["density"], where.max_density, np.less_equal),
            (self._figures["max_activation"], where.min_max_activation, np.greater_equal),
            (self._figures["max_activation"], where.max_max_activation, np.less_equal),
        )
        for figures, bound, holds in bounds:
            if bound is not None:
                mask &= holds(figures, bound)
        if where.promoted is not None:
            mask &= self._promoting([key for key, read in self._corpus.vocabulary.items() if read == where.promoted])
        if where.promoted_id is not None:
            mask &= self._promoting([where.promoted_id])
        if where.text is not None:
            mask &= self._text.features_with(where.text)
        if where.only is not None:
            mask &= self._among(where.only)
        if where.but:
            mask &= ~self._among(where.but)
        return mask

    def _promoting(self, ids: Sequence[int]) -> NDArray[np.bool_]:
        """The features that promote any of these tokens."""
        found = np.zeros(self.features, np.bool_)
        promoted, owners = self._promoted
        found[owners[np.isin(promoted, ids)]] = True
        return found

    def _among(self, indices: frozenset[int]) -> NDArray[np.bool_]:
        found = np.zeros(self.features, np.bool_)
        found[[index for index in indices if 0 <= index < self.features]] = True
        return found

    def _order(self, sort: FeatureSort) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The features in order, and each feature's place in it."""
        if sort not in self._orders:
            figures = self._figures[sort.by]
            order = np.argsort(-figures if sort.descending else figures, kind="stable")
            rank = np.empty_like(order)
            rank[order] = np.arange(self.features)
            self._orders[sort] = (order, rank)
        return self._orders[sort]

    # What is read once and kept

    @cached_property
    def _text(self) -> ContextText:
        places = self._column("places", unpack_places)
        starts = np.concatenate([each.starts for each in places]).astype(np.int64)
        return ContextText(
            self._corpus.tokens,
            self._corpus.vocabulary,
            features=self.features,
            owners=np.repeat(np.arange(self.features), [len(each.starts) for each in places]),
            starts=starts,
            ends=starts + np.concatenate([each.lengths for each in places]),
        )

    @cached_property
    def _promoted(self) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Every token that a feature promotes, and the feature."""
        promoted = [each.ids for each in self._column("promoted", unpack_promoted)]
        return np.concatenate(promoted), np.repeat(np.arange(self.features), [len(each) for each in promoted])

    def _column(self, name: str, unpack: Callable[[bytes], Column]) -> Sequence[Column]:
        try:
            return [unpack(row[0]) for row in self._query(f"SELECT {name} FROM features ORDER BY feature")]  # noqa: S608
        except (ValueError, TypeError) as error:
            raise InvalidIndex("the feature index is damaged: a feature's row does not fit together") from error

    # Rows

    def _records(self, indices: Iterable[int]) -> dict[int, FeatureRecord]:
        wanted = ", ".join(str(int(index)) for index in indices)
        rows = self._query(f"SELECT feature, {_COLUMNS} FROM features WHERE feature IN ({wanted})")  # noqa: S608 - ints
        return {row[0]: unpack_feature(row[1:]) for row in rows}

    def _summary(self, index: int, record: FeatureRecord) -> FeatureSummary:
        return FeatureSummary(
            index=index,
            density=float(self._figures["density"][index]),
            max_activation=record.max_activation,
            mean_activation=record.mean_activation,
            promoted=self._tokens(record.promoted),
            example=next(self._contexts(record, 1), None),
        )

    def _contexts(self, record: FeatureRecord, most: int) -> Iterator[FeatureContext]:
        places, begin = record.places, 0
        for start, length, peak, band in zip(
            places.starts[:most].tolist(),
            places.lengths[:most].tolist(),
            places.peaks[:most].tolist(),
            places.bands[:most].tolist(),
            strict=True,
        ):
            activations = record.activations[begin : begin + length].tolist()
            begin += length
            name, source = self._corpus.document_at(start)
            yield FeatureContext(
                document=name,
                source=source,
                band=BANDS[band],
                position=peak,
                activation=activations[peak],
                tokens=self._corpus.strings(start, length),
                activations=tuple(activations),
            )

    def _tokens(self, ranked: Ranked) -> tuple[PromotedToken, ...]:
        return tuple(
            PromotedToken(token_id=token, token=self._corpus.vocabulary.get(token, ""), logit=logit)
            for token, logit in ranked.pairs()
        )

    def _query(self, query: str, *parameters: object) -> Rows:
        try:
            with self._lock:
                return self._connection.execute(query, parameters).fetchall()
        except sqlite3.Error as error:
            raise InvalidIndex(f"the feature index is damaged: {error}") from error


def _histogram(record: FeatureRecord) -> Histogram:
    counts = record.histogram.tolist()
    edges = [record.max_activation * edge / len(counts) for edge in range(len(counts) + 1)] if counts else [0.0]
    return Histogram(edges=tuple(edges), counts=tuple(counts))


def _near(ranked: Ranked) -> tuple[NearFeature, ...]:
    return tuple(NearFeature(index=index, similarity=similarity) for index, similarity in ranked.pairs())
