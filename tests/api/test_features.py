"""Cards and lists of features over HTTP, on a fake index."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.catalogue.catalogue import Catalogue, open_catalogue, sae_folder
from services.catalogue.feature_indexes import INDEX_FILE, FeatureFilter, FeatureIndexes, FeaturePage, FeatureSort
from services.contracts.errors import ErrorCode, Refused
from services.contracts.feature_card import FeatureCard, FeatureLabel, FeatureSummary, Histogram
from services.contracts.sae import IndexFacts, SaeFacts
from services.labels.store import Labelled
from tests.api.catalogue import FEATURES, SAE, write_catalogue
from tests.api.conftest import Stand

pytestmark = pytest.mark.anyio

URL = f"/v1/saes/{SAE}/features"
FACTS = IndexFacts(
    tokens=100, tokens_over_norm=1, documents=2, corpus="c", corpus_sha256="0", sae_sha256="1", sha256="2"
)


class FakeIndex:
    """Features whose density grows with their index; remembers what was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[FeatureFilter, FeatureSort]] = []

    def card(self, index: int) -> FeatureCard:
        return FeatureCard(
            sae=SAE,
            index=index,
            density=index / 100,
            max_activation=1.0,
            mean_activation=0.5,
            active_tokens=index,
            histogram=Histogram(edges=(0.0, 1.0), counts=(index,)),
            contexts=(),
            promoted=(),
            suppressed=(),
            nearest_by_decoder=(),
            nearest_by_coactivation=(),
            corpus=FACTS,
        )

    def list(self, where: FeatureFilter, sort: FeatureSort, cursor: str | None, limit: int) -> FeaturePage:
        self.asked.append((where, sort))
        if cursor is not None and not cursor.isdecimal():
            raise Refused(ErrorCode.INVALID_REQUEST, "this cursor is not one that a page of features came with")
        wanted = [
            index
            for index in range(int(cursor or 0), FEATURES)
            if (where.only is None or index in where.only) and index not in where.but
        ]
        page = tuple(
            FeatureSummary(
                index=index, density=index / 100, max_activation=1.0, mean_activation=0.5, promoted=(), example=None
            )
            for index in wanted[:limit]
        )
        return FeaturePage(page, str(wanted[limit]) if len(wanted) > limit else None)


@pytest.fixture
def index() -> FakeIndex:
    return FakeIndex()


@pytest.fixture
def indexed(tmp_path: Path) -> Catalogue:
    write_catalogue(tmp_path)
    (sae_folder(tmp_path, SAE) / INDEX_FILE).touch()
    return open_catalogue(tmp_path)


@pytest.fixture
async def client(stand: Stand, index: FakeIndex, indexed: Catalogue) -> AsyncIterator[httpx.AsyncClient]:
    app = stand.app_with(catalogue=indexed, features=FeatureIndexes(indexed, lambda _path: index))
    async with stand.client(stand.key("alice"), app) as client:
        yield client


def label(stand: Stand, owner: str, index: int, text: str, *, shared: bool = False) -> None:
    item = FeatureLabel(text=text, shared=shared, updated_at=datetime.now(UTC))
    stand.services.labels.put(owner, SAE, [Labelled(index, item)])


async def listed(client: httpx.AsyncClient, **query: Any) -> list[int]:
    response = await client.get(URL, params=query)
    assert response.status_code == 200, response.text
    return [feature["index"] for feature in response.json()["features"]]


async def test_a_card_carries_the_labels_that_its_reader_sees(stand: Stand, client: httpx.AsyncClient) -> None:
    label(stand, "alice", 3, "alice's")
    label(stand, "bob", 3, "bob's")
    label(stand, "operator", 3, "the operator's", shared=True)
    card = (await client.get(f"{URL}/3")).json()
    assert (card["index"], card["density"], card["corpus"]["tokens"]) == (3, 0.03, 100)
    assert [item["text"] for item in card["labels"]] == ["alice's", "the operator's"]
    assert (await client.get(f"{URL}/4")).json()["labels"] == []


@pytest.mark.parametrize(("normalization", "scaled"), [("layer_norm", True), ("none", False)])
async def test_a_card_says_where_promoted_logits_leave_the_tokens_size_out(
    stand: Stand, index: FakeIndex, indexed: Catalogue, normalization: str, scaled: bool
) -> None:
    facts = SaeFacts.model_validate(indexed.sae(SAE).model_dump() | {"normalize_activations": normalization})
    changed = Catalogue(indexed.home, indexed.models, {SAE: facts})
    app = stand.app_with(catalogue=changed, features=FeatureIndexes(changed, lambda _path: index))
    async with stand.client(stand.key("alice"), app) as client:
        assert (await client.get(f"{URL}/3")).json()["effects_per_token_scale"] is scaled


@pytest.mark.parametrize("index", [-1, FEATURES, 9_999_999])
async def test_a_feature_that_does_not_exist_is_not_found(client: httpx.AsyncClient, index: int) -> None:
    response = await client.get(f"{URL}/{index}")
    assert (response.status_code, response.json()["code"]) == (404, "unknown_feature")
    assert f"0..{FEATURES - 1}" in response.json()["detail"]


async def test_an_sae_without_an_index_says_how_to_make_one(stand: Stand) -> None:
    async with stand.client(stand.key("alice")) as client:
        for response in (await client.get(f"{URL}/0"), await client.get(URL)):
            assert (response.status_code, response.json()["code"]) == (404, "feature_index_missing")
            assert "lensd-worker index-sae" in response.json()["detail"]
        unknown = await client.get("/v1/saes/none/features")
        assert (unknown.status_code, unknown.json()["code"]) == (404, "unknown_sae")


async def test_pages_follow_one_another_with_their_labels(stand: Stand, client: httpx.AsyncClient) -> None:
    label(stand, "alice", 9, "nine")
    first = (await client.get(URL, params={"limit": 8})).json()
    second = (await client.get(URL, params={"limit": 8, "cursor": first["cursor"]})).json()
    assert [feature["index"] for feature in first["features"] + second["features"]] == list(range(FEATURES))
    assert second["cursor"] is None
    assert [item["text"] for item in second["features"][1]["labels"]] == ["nine"]


async def test_features_are_found_by_the_labels_that_the_caller_sees(stand: Stand, client: httpx.AsyncClient) -> None:
    label(stand, "alice", 2, "Capitals of Europe")
    label(stand, "operator", 5, "capital letters", shared=True)
    label(stand, "bob", 7, "capital")
    assert await listed(client, label="CAPITAL") == [2, 5]
    assert await listed(client, label="europe", labelled=True) == [2]
    assert await listed(client, labelled=True) == [2, 5]
    assert await listed(client, labelled=False) == [index for index in range(FEATURES) if index not in (2, 5)]
    assert await listed(client, label="capital", labelled=False) == []


async def test_a_promoted_token_may_be_named_by_its_id(client: httpx.AsyncClient, index: FakeIndex) -> None:
    await listed(client, promoted_id=0)
    await listed(client, promoted_id=9_042)
    assert [where for where, _ in index.asked] == [FeatureFilter(promoted_id=0), FeatureFilter(promoted_id=9_042)]


async def test_every_condition_reaches_the_index(client: httpx.AsyncClient, index: FakeIndex) -> None:
    asked: dict[str, Any] = {
        "min_density": 0.1,
        "max_density": 0.2,
        "min_max_activation": 1.5,
        "max_max_activation": 3.0,
        "promoted": " Paris",
        "text": "Eiffel",
    }
    await listed(client, **asked, sort="density", order="descending")
    assert index.asked == [(FeatureFilter(**asked), FeatureSort("density", descending=True))]


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ({"limit": 101}, "limit"),
        ({"sort": "beauty"}, "sort"),
        ({"min_density": "nan"}, "min_density"),
        ({"text": "x" * 201}, "text"),
        ({"colour": "red"}, "colour"),
        ({"cursor": "not-ours"}, "cursor"),
        ({"labelled": "perhaps"}, "labelled"),
        ({"promoted_id": -1}, "promoted_id"),
        ({"promoted_id": 10**30}, "promoted_id"),
        ({"promoted_id": " Paris"}, "promoted_id"),
    ],
)
async def test_a_wrong_parameter_is_named(client: httpx.AsyncClient, query: dict[str, Any], parameter: str) -> None:
    response = await client.get(URL, params=query)
    assert (response.status_code, response.json()["errors"][0]["parameter"]) == (422, parameter)


def test_an_index_is_opened_once_whoever_asks(indexed: Catalogue) -> None:
    opened: list[Path] = []

    def open_index(path: Path) -> FakeIndex:
        opened.append(path)
        return FakeIndex()

    indexes = FeatureIndexes(indexed, open_index)
    assert indexes.of(SAE) is indexes.of(SAE)
    assert opened == [sae_folder(indexed.home, SAE) / INDEX_FILE]
