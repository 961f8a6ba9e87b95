"""The cache of models holds anything that has the size it was told; here the models are tiny real ones."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from services.catalogue.catalogue import model_folder
from services.contracts.errors import ErrorCode, JobFailed
from services.models.cache import ModelCache, ModelStatus
from services.models.load import LoadedModel, load_model
from tests.prepared import prepare_family

FAMILIES = {"tiny-gpt2": "gpt2", "tiny-llama": "llama", "tiny-opt": "opt"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedModel]:
    home, sources = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("sources")
    found = {}
    for model_id, family in FAMILIES.items():
        facts = prepare_family(family, sources, home)
        folder: Path = model_folder(home, model_id)
        found[model_id] = load_model(folder, facts, device=torch.device("cpu"), dtype=torch.float32)
    return found


class Loads:
    """Loads by handing out, counts, and can be held up or made to fail."""

    def __init__(self, models: dict[str, LoadedModel]) -> None:
        self._models = models
        self.loaded: list[str] = []
        self.statuses: list[tuple[str, ModelStatus]] = []
        self.open = threading.Event()
        self.open.set()
        self.failing = False

    def load(self, model_id: str) -> LoadedModel:
        assert self.open.wait(10)
        self.loaded.append(model_id)
        if self.failing:
            raise JobFailed(ErrorCode.MODEL_UNAVAILABLE, "the weights are missing")
        return self._models[model_id]

    def announce(self, model_id: str, status: ModelStatus) -> None:
        self.statuses.append((model_id, status))

    def cache(self, room_for: int) -> ModelCache:
        return ModelCache(self.load, lambda _: 100, limit_bytes=100 * room_for, announce=self.announce)


@pytest.fixture
def loads(models: dict[str, LoadedModel]) -> Loads:
    return Loads(models)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def touch(cache: ModelCache, model_id: str) -> Callable[[], LoadedModel]:
    def use() -> LoadedModel:
        with cache.use(model_id) as model:
            return model

    return use


def test_concurrent_requests_for_one_model_load_it_once(loads: Loads, threads: ThreadPoolExecutor) -> None:
    cache = loads.cache(room_for=1)
    loads.open.clear()
    waiting = [threads.submit(touch(cache, "tiny-gpt2")) for _ in range(8)]
    while cache.statuses() != {"tiny-gpt2": "loading"}:
        pass
    loads.open.set()
    assert len({id(future.result(10)) for future in waiting}) == 1
    assert loads.loaded == ["tiny-gpt2"]
    assert loads.statuses == [("tiny-gpt2", "loading"), ("tiny-gpt2", "loaded")]
    assert cache.statuses() == {"tiny-gpt2": "loaded"}


def test_the_least_recently_used_model_makes_room(loads: Loads) -> None:
    cache = loads.cache(room_for=2)
    for model_id in ("tiny-gpt2", "tiny-llama", "tiny-gpt2", "tiny-opt"):
        touch(cache, model_id)()
    assert set(cache.statuses()) == {"tiny-gpt2", "tiny-opt"}
    assert ("tiny-llama", "unloaded") in loads.statuses
    assert cache.nbytes == 200


def test_a_model_in_use_is_never_evicted_and_the_newcomer_waits(loads: Loads, threads: ThreadPoolExecutor) -> None:
    cache = loads.cache(room_for=1)
    with ExitStack() as pinned:
        pinned.enter_context(cache.use("tiny-gpt2"))
        newcomer = threads.submit(touch(cache, "tiny-llama"))
        with pytest.raises(TimeoutError):
            newcomer.result(0.2)
        assert set(cache.statuses()) == {"tiny-gpt2"}
    newcomer.result(10)
    assert set(cache.statuses()) == {"tiny-llama"}


def test_a_failed_load_is_told_to_all_who_wait_and_tried_again(loads: Loads, threads: ThreadPoolExecutor) -> None:
    cache = loads.cache(room_for=1)
    loads.failing = True
    loads.open.clear()
    waiting = [threads.submit(touch(cache, "tiny-gpt2")) for _ in range(3)]
    while cache.statuses() != {"tiny-gpt2": "loading"}:
        pass
    loads.open.set()
    for future in waiting:
        with pytest.raises(JobFailed, match="missing"):
            future.result(10)
    assert cache.statuses() == {}
    loads.failing = False
    assert touch(cache, "tiny-gpt2")().facts.id == "tiny-gpt2"


def test_a_model_larger_than_the_cache_is_refused_with_both_sizes(loads: Loads) -> None:
    with pytest.raises(JobFailed, match="takes 100 bytes, this worker's models may take 0"):
        touch(loads.cache(room_for=0), "tiny-gpt2")()
