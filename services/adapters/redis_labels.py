"""Labels of features in Redis: one hash for each tenant and SAE, and one for the operator's shared ones on it.

    lensd:labels:<set>           hash: feature → label as JSON; a set is of:<owner>:<sae> or shared:<sae>
    lensd:label-bytes            hash: set → bytes of its labels
    lensd:label-bytes-in-all     string: the sum of it all

They never expire, and survive restarts as the server's append-only file does.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from redis import Redis

from services.adapters.lua_scripts import Argument, LuaScripts
from services.adapters.redis_client import store_errors
from services.contracts.feature_card import FeatureLabel
from services.labels.store import LabelBounds, Labelled, no_room, too_many_labels

_AT_ONCE = 1_000
"""Labels fetched with one command when all are wanted: the server serves others in between."""


class RedisLabelStore:
    """Implements `services.labels.store.LabelStore`."""

    def __init__(self, client: Redis, bounds: LabelBounds | None = None) -> None:
        self._client = client
        self._scripts = LuaScripts(client)
        self._bounds = bounds or LabelBounds()

    def put(self, owner: str, sae: str, labels: Sequence[Labelled]) -> None:
        bounds = self._bounds
        # The last one of a feature alone, so that the script counts what will really be there.
        latest = {(_set(owner, sae, item.label.shared), item.index): item.label for item in labels}
        arguments: list[Argument] = [bounds.labels, bounds.nbytes, bounds.nbytes_in_all]
        for (place, index), label in latest.items():
            arguments += (place, index, label.model_dump_json())
        answer = self._scripts.run("labels_put", *arguments)
        if answer == b"too many":
            raise too_many_labels(bounds)
        if answer == b"no room":
            raise no_room(bounds)

    def delete(self, owner: str, sae: str, index: int, *, shared: bool) -> bool:
        return bool(self._scripts.run("label_delete", _set(owner, sae, shared), index))

    def of(self, owner: str, sae: str, indices: Sequence[int]) -> Mapping[int, tuple[FeatureLabel, ...]]:
        if not indices:
            return {}
        with store_errors(), self._client.pipeline(transaction=False) as pipeline:
            for shared in (False, True):
                pipeline.hmget(_key(owner, sae, shared), [str(index) for index in indices])
            own, shared_ones = pipeline.execute()
        seen: dict[int, tuple[FeatureLabel, ...]] = {}
        for index, *documents in zip(indices, own, shared_ones, strict=True):
            if labels := tuple(_label(document) for document in documents if document is not None):
                seen[index] = labels
        return seen

    def every(self, owner: str, sae: str) -> tuple[Labelled, ...]:
        found = [
            Labelled(index, label) for shared in (False, True) for index, label in self._all(_key(owner, sae, shared))
        ]
        return tuple(sorted(found, key=lambda item: (item.index, item.label.shared)))

    def _all(self, key: str) -> Iterator[tuple[int, FeatureLabel]]:
        with store_errors():
            # A feature may come twice while others write: the dict takes it once.
            pairs = dict(cast("Iterator[tuple[bytes, bytes]]", self._client.hscan_iter(key, count=_AT_ONCE)))
        return ((int(index), _label(document)) for index, document in pairs.items())


def _set(owner: str, sae: str, shared: bool) -> str:
    return f"shared:{sae}" if shared else f"of:{owner}:{sae}"


def _key(owner: str, sae: str, shared: bool) -> str:
    return f"lensd:labels:{_set(owner, sae, shared)}"


def _label(document: bytes) -> FeatureLabel:
    return FeatureLabel.model_validate_json(document)
