"""Reading an index as the gateway does: filters, order, pages, many threads, and files that are not what they were."""

import shutil
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.catalogue.catalogue import Catalogue
from services.catalogue.feature_file import InvalidIndex
from services.catalogue.feature_index import FeatureIndex, open_index, open_prepared
from services.catalogue.feature_indexes import FeatureFilter, FeatureSort, SortKey
from services.contracts.errors import ErrorCode, NotFound, Refused
from services.contracts.feature_card import FeatureCard, FeatureSummary
from services.contracts.sae import SaeFacts
from services.contracts.site import SiteName
from tests.services.saes.index.conftest import D_SAE

EVERY = 1_000


@pytest.fixture(scope="module")
def index(indexes: dict[str, Path]) -> Iterator[FeatureIndex]:
    with closing(open_index(indexes["relu"])) as index:
        yield index


@pytest.fixture(scope="module")
def cards(index: FeatureIndex) -> list[FeatureCard]:
    return [index.card(feature) for feature in range(D_SAE)]


@pytest.fixture
def copied(indexes: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copyfile(indexes["relu"], tmp_path / "features.sqlite"))


def listed(index: FeatureIndex, sort: FeatureSort | None = None, **where: Any) -> list[int]:
    page = index.list(FeatureFilter(**where), sort or FeatureSort(), None, EVERY)
    assert page.cursor is None
    return [feature.index for feature in page.features]


def text_of(card: FeatureCard) -> list[str]:
    return ["".join(context.tokens).lower() for context in card.contexts]


FILTERS: list[tuple[dict[str, Any], Callable[[FeatureCard], bool]]] = [
    ({"min_density": 0.1}, lambda card: card.density >= 0.1),
    ({"max_density": 0.1}, lambda card: card.density <= 0.1),
    ({"min_max_activation": 5.0}, lambda card: card.max_activation >= 5.0),
    ({"max_max_activation": 5.0, "min_density": 0.1}, lambda card: card.max_activation <= 5.0 and card.density >= 0.1),
    ({"promoted": " Rome"}, lambda card: any(token.token == " Rome" for token in card.promoted)),
    ({"promoted_id": 1}, lambda card: any(token.token_id == 1 for token in card.promoted)),
    ({"promoted": "Rome"}, lambda _: False),
    ({"promoted": " Rome", "promoted_id": 99}, lambda _: False),
    ({"promoted_id": 99}, lambda _: False),
    ({"text": "RIVER runs"}, lambda card: any("river runs" in text for text in text_of(card))),
    ({"text": "r"}, lambda card: any("r" in text for text in text_of(card))),
    ({"text": "no such thing"}, lambda _: False),
    ({"only": frozenset({3, 5, D_SAE, 10**9})}, lambda card: card.index in (3, 5)),
    ({"but": frozenset({3, 5, 10**9})}, lambda card: card.index not in (3, 5)),
]


@pytest.mark.parametrize(("where", "holds"), FILTERS)
def test_filters_keep_the_features_whose_cards_meet_them(
    index: FeatureIndex, cards: list[FeatureCard], where: dict[str, Any], holds: Callable[[FeatureCard], bool]
) -> None:
    assert listed(index, **where) == [card.index for card in cards if holds(card)]


def test_some_filters_keep_some_features_and_not_others(index: FeatureIndex) -> None:
    for where in ({"min_density": 0.1}, {"text": "river runs"}, {"max_max_activation": 5.0}):
        assert 0 < len(listed(index, **where)) < D_SAE


@pytest.mark.parametrize("by", ["index", "density", "max_activation", "mean_activation"])
@pytest.mark.parametrize("descending", [False, True])
def test_lists_are_sorted_and_their_pages_follow_one_another(
    index: FeatureIndex, cards: list[FeatureCard], by: SortKey, descending: bool
) -> None:
    sign = -1 if descending else 1
    expected = sorted(cards, key=lambda card: (sign * getattr(card, by), card.index))
    found: list[FeatureSummary] = []
    cursor: str | None = None
    pages = 0
    while cursor is not None or not pages:
        page = index.list(FeatureFilter(), FeatureSort(by, descending), cursor, 7)
        found += page.features
        cursor = page.cursor
        pages += 1
    assert pages == -(-D_SAE // 7)
    assert [feature.index for feature in found] == [card.index for card in expected]


def test_a_page_that_ends_exactly_at_the_end_is_the_last(index: FeatureIndex) -> None:
    assert index.list(FeatureFilter(), FeatureSort(), None, D_SAE).cursor is None
    assert index.list(FeatureFilter(), FeatureSort(), None, D_SAE - 1).cursor == str(D_SAE - 2)
    assert index.list(FeatureFilter(), FeatureSort(), str(D_SAE - 1), 5).features == ()


def test_a_line_of_a_list_says_what_the_card_says(index: FeatureIndex, cards: list[FeatureCard]) -> None:
    for feature in index.list(FeatureFilter(), FeatureSort(), None, EVERY).features:
        card = cards[feature.index]
        assert feature.example == (card.contexts[0] if card.contexts else None)
        same = ("density", "max_activation", "mean_activation", "promoted")
        assert [getattr(feature, name) for name in same] == [getattr(card, name) for name in same]


@pytest.mark.parametrize("cursor", ["", "-1", "x", str(D_SAE), "9" * 400, "²", "1.0"])
def test_a_cursor_that_no_page_came_with_is_refused(index: FeatureIndex, cursor: str) -> None:
    with pytest.raises(Refused, match="this cursor") as refused:
        index.list(FeatureFilter(), FeatureSort(), cursor, 5)
    assert refused.value.code == ErrorCode.INVALID_REQUEST


@pytest.mark.parametrize("feature", [-1, D_SAE, 10**12])
def test_a_feature_that_does_not_exist_is_not_found(index: FeatureIndex, feature: int) -> None:
    with pytest.raises(NotFound, match=r"relu has features 0..47") as refused:
        index.card(feature)
    assert refused.value.code == ErrorCode.UNKNOWN_FEATURE


def test_many_threads_read_the_same_cards(indexes: dict[str, Path], cards: list[FeatureCard]) -> None:
    with closing(open_index(indexes["relu"])) as index, ThreadPoolExecutor(8) as pool:
        assert list(pool.map(index.card, [*range(D_SAE)] * 4)) == cards * 4
        texts = pool.map(lambda text: listed(index, text=text), ["river", "rome", "paris", "bridge"] * 4)
        assert [*texts][:4] == [listed(index, text=text) for text in ("river", "rome", "paris", "bridge")]


def test_the_name_on_the_cards_is_the_folders_unless_another_is_given(indexes: dict[str, Path]) -> None:
    with closing(open_index(indexes["topk"])) as index:
        assert index.card(0).sae == "topk"
    with closing(open_index(indexes["topk"], sae_id="renamed")) as index:
        assert index.card(0).sae == "renamed"


def refused(path: Path, message: str, **options: Any) -> None:
    with pytest.raises(InvalidIndex, match=message) as error, closing(open_index(path, **options)) as index:
        index.check()
    assert error.value.code == ErrorCode.SAE_UNAVAILABLE


@pytest.mark.parametrize("bytes_left", [0, 50, 5_000, 16_384, -1])
def test_a_truncated_index_is_refused(copied: Path, bytes_left: int) -> None:
    content = copied.read_bytes()
    copied.write_bytes(content[:bytes_left])
    refused(copied, "truncated or padded|not an SQLite file")


def test_what_is_no_index_is_refused(tmp_path: Path, copied: Path) -> None:
    refused(tmp_path / "none.sqlite", "cannot be read")
    other = tmp_path / "other.sqlite"
    with closing(sqlite3.connect(other)) as connection, connection:
        connection.execute("CREATE TABLE t (x)")
    refused(other, "no feature index of version 1: make it again by index-sae")
    copied.write_bytes(b"x" * 20_000)
    refused(copied, "not an SQLite file")


def test_an_index_that_was_tampered_with_is_refused_by_its_sha256(copied: Path) -> None:
    with closing(open_index(copied)) as index:
        sha256 = index.facts.sha256
    open_index(copied, expected_sha256=sha256).close()
    content = bytearray(copied.read_bytes())
    content[-1] ^= 1
    copied.write_bytes(content)
    refused(copied, f"expected {sha256}", expected_sha256=sha256)


BOMB = zlib.compress(bytes(1 << 24), 9)
DAMAGES = [
    "UPDATE features SET detail = X'00' WHERE feature = 5",
    f"UPDATE features SET detail = X'{BOMB.hex()}' WHERE feature = 5",
    f"UPDATE features SET detail = X'{zlib.compress(b'short').hex()}' WHERE feature = 5",
    "UPDATE features SET places = X'01000000FFFFFFFF0100' WHERE feature = 5",
    "UPDATE features SET places = X'010000' WHERE feature = 5",
    "UPDATE features SET promoted = X'0102' WHERE feature = 5",
    "UPDATE features SET detail = 'text' WHERE feature = 5",
    "UPDATE features SET max_activation = 'much' WHERE feature = 5",
    "UPDATE features SET max_activation = 9e999 WHERE feature = 5",
    "UPDATE features SET active_tokens = 1000000 WHERE feature = 5",
    "UPDATE features SET active_tokens = -1 WHERE feature = 5",
    "DELETE FROM features WHERE feature = 5",
    "UPDATE features SET feature = 1000 WHERE feature = 47",
    "UPDATE documents SET start = 'x'",
    "DELETE FROM documents",
    "UPDATE documents SET start = 5 WHERE document = 0",
    "DELETE FROM corpus",
    f"UPDATE corpus SET tokens = X'{BOMB.hex()}'",
    "UPDATE corpus SET tokens = 5",
    "DELETE FROM meta",
    "UPDATE meta SET value = '{}' WHERE name = 'header'",
    "UPDATE meta SET value = X'7B7D' WHERE name = 'header'",
    "UPDATE meta SET value = X'7B7D' WHERE name = 'vocabulary'",
    f"UPDATE meta SET value = X'{zlib.compress(b'[]').hex()}' WHERE name = 'vocabulary'",
    f"UPDATE meta SET value = X'{zlib.compress(b'{}').hex()}' WHERE name = 'vocabulary'",
    "DROP TABLE features",
    "DROP TABLE corpus",
]


@pytest.mark.parametrize("damage", DAMAGES, ids=[damage[:60] for damage in DAMAGES])
def test_a_damaged_index_is_refused_and_never_shown(copied: Path, damage: str) -> None:
    with closing(sqlite3.connect(copied)) as connection, connection:
        connection.execute(damage)
    refused(copied, "damaged")


def test_the_gateway_opens_only_the_file_that_was_prepared(copied: Path) -> None:
    folder = copied.parent / "saes" / "served"
    folder.mkdir(parents=True)
    path = copied.rename(folder / copied.name)
    with closing(open_index(path)) as index:
        indexed = index.facts
    facts = SaeFacts(
        id="served",
        model="m",
        architecture="standard",
        site=SiteName.RESID_POST,
        layer=0,
        d_model=8,
        features=D_SAE,
        k=None,
        bos=True,
        norm_threshold=None,
        sha256="relu",
        index=indexed,
    )
    catalogue = Catalogue(copied.parent, {}, {"served": facts})
    with closing(open_prepared(catalogue, path)) as index:
        assert (index.card(0).sae, index.facts) == ("served", indexed)
    other = facts.model_copy(update={"index": indexed.model_copy(update={"sha256": "0" * 64})})
    with pytest.raises(InvalidIndex, match="expected 000"):
        open_prepared(replace(catalogue, saes={"served": other}), path)
    without = facts.model_copy(update={"index": None})
    with pytest.raises(InvalidIndex, match="lensd-worker prepare"):
        open_prepared(replace(catalogue, saes={"served": without}), path)
