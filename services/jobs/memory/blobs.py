"""Blobs in a dictionary."""

from collections.abc import Sequence

from services.jobs.ids import job_of_blob


class MemoryBlobs:
    def __init__(self) -> None:
        self.by_key: dict[str, bytes] = {}

    def put(self, key: str, data: bytes) -> None:
        job_of_blob(key)
        self.by_key[key] = bytes(data)

    def get(self, key: str) -> bytes | None:
        job_of_blob(key)
        return self.by_key.get(key)

    def read(self, key: str, offset: int, nbytes: int) -> bytes | None:
        data = self.get(key)
        return None if data is None else data[offset : offset + nbytes]

    def delete(self, job_id: str) -> None:
        for key in [key for key in self.by_key if job_of_blob(key) == job_id]:
            del self.by_key[key]

    def jobs(self) -> Sequence[str]:
        return sorted({job_of_blob(key) for key in self.by_key})
