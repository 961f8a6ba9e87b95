"""The stores of labels: the fake and the real one."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from services.adapters.redis_client import make_client
from services.adapters.redis_labels import RedisLabelStore
from services.contracts.errors import Conflict, ErrorCode, Unavailable
from services.contracts.feature_card import FeatureLabel
from services.labels.memory import MemoryLabelStore
from services.labels.store import LabelBounds, Labelled, LabelStore
from tests.services.adapters.valkey import valkey_server

SAE = "tiny-l1"
NOW = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)

MakeStore = Callable[[LabelBounds], LabelStore]


@pytest.fixture(params=["memory", "valkey"])
def make_store(request: pytest.FixtureRequest) -> MakeStore:
    if request.param == "memory":
        return MemoryLabelStore
    client = make_client(request.getfixturevalue("redis_url"), patient=False)
    return lambda bounds: RedisLabelStore(client, bounds)


@pytest.fixture
def store(make_store: MakeStore) -> LabelStore:
    return make_store(LabelBounds())


def labelled(index: int, text: str, *, shared: bool = False) -> Labelled:
    label = FeatureLabel(text=text, author="ada", method="manual", shared=shared, updated_at=NOW)
    return Labelled(index, label)


def texts(store: LabelStore, owner: str, *indices: int) -> dict[int, list[str]]:
    return {index: [label.text for label in labels] for index, labels in store.of(owner, SAE, indices).items()}


def test_a_label_comes_back_as_it_was(store: LabelStore) -> None:
    item = labelled(3, "Städte\n\u2028 \U0001f600")
    store.put("ada", SAE, [item])
    assert store.of("ada", SAE, [3]) == {3: (item.label,)}
    assert store.every("ada", SAE) == (item,)


def test_a_tenant_sees_its_own_labels_and_then_the_shared_ones_and_no_others(store: LabelStore) -> None:
    store.put("operator", SAE, [labelled(1, "shared", shared=True), labelled(2, "operator's own")])
    store.put("ada", SAE, [labelled(1, "ada's")])
    store.put("bob", SAE, [labelled(1, "bob's"), labelled(5, "bob's too")])
    assert texts(store, "ada", 1, 2, 5, 9) == {1: ["ada's", "shared"]}
    assert texts(store, "eve", 1, 2, 5, 9) == {1: ["shared"]}
    assert [(item.index, item.label.text) for item in store.every("bob", SAE)] == [
        (1, "bob's"),
        (1, "shared"),
        (5, "bob's too"),
    ]


@pytest.mark.parametrize("owner", ["", "shared", "of:ada", "shared:tiny-l1"])
def test_no_tenants_name_leads_to_anothers_labels(store: LabelStore, owner: str) -> None:
    store.put("ada", SAE, [labelled(1, "ada's")])
    store.put(owner, SAE, [labelled(2, "hidden")])
    assert texts(store, owner, 1, 2) == {2: ["hidden"]}
    assert texts(store, "ada", 1, 2) == {1: ["ada's"]}


def test_labels_belong_to_one_sae(store: LabelStore) -> None:
    store.put("ada", "other", [labelled(1, "of another SAE")])
    assert store.every("ada", SAE) == ()
    assert store.of("ada", SAE, [1]) == {}


def test_a_later_label_takes_the_place_of_the_earlier_one(store: LabelStore) -> None:
    store.put("ada", SAE, [labelled(1, "first")])
    store.put("ada", SAE, [labelled(1, "second"), labelled(1, "third")])
    assert texts(store, "ada", 1) == {1: ["third"]}


def test_the_own_and_the_shared_label_are_deleted_apart(store: LabelStore) -> None:
    store.put("ada", SAE, [labelled(1, "ada's"), labelled(1, "shared", shared=True)])
    assert store.delete("ada", SAE, 1, shared=False)
    assert not store.delete("ada", SAE, 1, shared=False)
    assert not store.delete("bob", SAE, 1, shared=False)
    assert texts(store, "ada", 1) == {1: ["shared"]}
    assert store.delete("bob", SAE, 1, shared=True)
    assert store.every("ada", SAE) == ()


def test_over_the_bound_of_labels_none_is_stored(make_store: MakeStore) -> None:
    store = make_store(LabelBounds(labels=3))
    store.put("ada", SAE, [labelled(1, "a"), labelled(2, "b")])
    with pytest.raises(Conflict, match="at most 3 labels") as refusal:
        store.put(
            "ada", SAE, [labelled(9, "s", shared=True), labelled(2, "changed"), labelled(3, "c"), labelled(4, "d")]
        )
    assert refusal.value.code is ErrorCode.TOO_MANY_LABELS
    assert texts(store, "ada", 1, 2, 3, 4, 9) == {1: ["a"], 2: ["b"]}
    store.put("ada", SAE, [labelled(2, "changed"), labelled(3, "c"), labelled(4, "s", shared=True)])
    store.put("bob", SAE, [labelled(index, "x") for index in range(3)])
    assert len(store.every("ada", SAE)) == 4


@pytest.mark.parametrize(
    ("bounds", "error"),
    [(LabelBounds(nbytes=1_000), Conflict), (LabelBounds(nbytes_in_all=1_000), Unavailable)],
)
def test_over_a_bound_of_bytes_none_is_stored_and_deleting_makes_room(
    make_store: MakeStore, bounds: LabelBounds, error: type[Exception]
) -> None:
    store = make_store(bounds)
    store.put("ada", SAE, [labelled(1, "x" * 700)])
    with pytest.raises(error):
        store.put("ada", SAE, [labelled(2, "y"), labelled(3, "y" * 300)])
    store.put("ada", SAE, [labelled(1, "z" * 710)])
    store.delete("ada", SAE, 1, shared=False)
    store.put("ada", SAE, [labelled(2, "y" * 700)])
    assert texts(store, "ada", 1, 2, 3) == {2: ["y" * 700]}


def test_labels_survive_a_restart_of_the_server(tmp_path: Path) -> None:
    with valkey_server(tmp_path) as server:
        with make_client(server.url, patient=False) as client:
            RedisLabelStore(client).put("ada", SAE, [labelled(1, "kept")])
        server.stop()
        server.start()
        with make_client(server.url, patient=False) as client:
            assert texts(RedisLabelStore(client), "ada", 1) == {1: ["kept"]}
