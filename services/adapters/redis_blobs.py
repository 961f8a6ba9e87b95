"""Blobs in Redis, for hosts that share nothing else: in chunks, and bounded so that they never crowd out job records.

`lensd:blob:<key>` is a hash of chunks, complete once it has `nbytes`; `lensd:blobs:<job>` notes a job's blobs and their
sizes and whose they are, `lensd:blobs` the jobs that have some, `lensd:blob-bytes` the sum of it all,
`lensd:blob-bytes:<owner>` that of one owner's.
"""

import math
from collections.abc import Sequence
from typing import cast

from redis import Redis

from services.adapters.lua_scripts import LuaScripts
from services.adapters.redis_client import store_errors
from services.contracts.errors import ErrorCode, Unavailable
from services.jobs.ids import job_of_blob

CHUNK_BYTES = 2**20
DEFAULT_MAX_BYTES = 256 * 2**20
OWNER_SHARE = 0.5
"""Of all that is kept, what one owner may fill."""


class RedisBlobs:
    """Implements `services.jobs.ports.Blobs`; `max_bytes` bounds all blobs together."""

    def __init__(self, client: Redis, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self._client = client
        self._scripts = LuaScripts(client)
        self._max_bytes = max_bytes

    def put(self, key: str, data: bytes) -> None:
        share = math.floor(OWNER_SHARE * self._max_bytes)
        match self._scripts.run("blob_reserve", key, job_of_blob(key), len(data), self._max_bytes, share):
            case b"all":
                message = (
                    f"the store of results is full ({self._max_bytes} bytes): delete jobs that are no longer needed"
                )
                raise Unavailable(ErrorCode.STORE_UNAVAILABLE, message)
            case b"share":
                message = f"your results fill your share of the store of results ({share} bytes): delete jobs of yours"
                raise Unavailable(ErrorCode.STORE_UNAVAILABLE, message)
        with store_errors():
            for number, start in enumerate(range(0, len(data), CHUNK_BYTES)):
                self._client.hset(f"lensd:blob:{key}", str(number), data[start : start + CHUNK_BYTES])
            self._client.hset(f"lensd:blob:{key}", "nbytes", str(len(data)))

    def get(self, key: str) -> bytes | None:
        nbytes = self._nbytes(key)
        return None if nbytes is None else self._read(key, 0, nbytes)

    def read(self, key: str, offset: int, nbytes: int) -> bytes | None:
        size = self._nbytes(key)
        return None if size is None else self._read(key, min(offset, size), min(offset + nbytes, size))

    def delete(self, job_id: str) -> None:
        self._scripts.run("blob_delete", job_id)

    def jobs(self) -> Sequence[str]:
        with store_errors():
            return sorted(job.decode() for job in cast("set[bytes]", self._client.smembers("lensd:blobs")))

    def _nbytes(self, key: str) -> int | None:
        job_of_blob(key)
        with store_errors():
            nbytes = cast("bytes | None", self._client.hget(f"lensd:blob:{key}", "nbytes"))
        return None if nbytes is None else int(nbytes)

    def _read(self, key: str, start: int, end: int) -> bytes | None:
        first = start // CHUNK_BYTES
        chunks: list[bytes] = []
        for number in range(first, -(-end // CHUNK_BYTES)):
            with store_errors():
                chunk = cast("bytes | None", self._client.hget(f"lensd:blob:{key}", str(number)))
            if chunk is None:
                return None
            chunks.append(chunk)
        return b"".join(chunks)[start - first * CHUNK_BYTES : end - first * CHUNK_BYTES]
