"""Blobs as files: `<root>/<job>/<attempt>/<uuid>`."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from services.contracts.errors import ErrorCode, Unavailable
from services.jobs.ids import job_of_blob, owns_blobs


class FolderBlobs:
    """Implements `services.jobs.ports.Blobs` in a folder that all processes of the deployment share."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, key: str, data: bytes) -> None:
        """Written beside, synced, then renamed: a reader sees the whole or nothing, also after a crash."""
        path = self._path(key)
        unfinished = path.with_suffix(".tmp")
        with _disk_errors():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                with unfinished.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                unfinished.replace(path)
            finally:
                unfinished.unlink(missing_ok=True)
            for folder in (path.parent, path.parent.parent, self._root):
                _sync(folder)

    def get(self, key: str) -> bytes | None:
        path = self._path(key)
        with _disk_errors():
            try:
                return path.read_bytes()
            except FileNotFoundError:
                return None

    def read(self, key: str, offset: int, nbytes: int) -> bytes | None:
        path = self._path(key)
        with _disk_errors():
            try:
                with path.open("rb") as file:
                    file.seek(offset)
                    return file.read(nbytes)
            except FileNotFoundError:
                return None

    def delete(self, job_id: str) -> None:
        if owns_blobs(job_id):
            shutil.rmtree(self._root / job_id, ignore_errors=True)

    def jobs(self) -> Sequence[str]:
        with _disk_errors():
            return (
                sorted(path.name for path in self._root.iterdir() if owns_blobs(path.name))
                if self._root.is_dir()
                else []
            )

    def _path(self, key: str) -> Path:
        job_of_blob(key)  # Its form leaves no room for `..`.
        return self._root / key


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = f"the store of results cannot be used: {error.strerror}"
        raise Unavailable(ErrorCode.STORE_UNAVAILABLE, message) from error


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
