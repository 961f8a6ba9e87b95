"""The store of prepared models and SAEs: what is there already, and how something new gets in whole or not at all.

An entry is prepared into `<kind>/.<id>.partial` and renamed when complete. A fingerprint of the operator's entry beside
the facts tells whether it must be prepared again.
"""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.catalogue.feature_indexes import INDEX_FILE
from services.catalogue.operator import AnySaeEntry, ModelEntry, file_sha256

_MODEL_LAYOUT = 2
_SAE_LAYOUT = 3
"""Raise one when what a prepared folder of its kind holds changes: those of an older lensd are then prepared again."""

_FINGERPRINT = "prepared"


def is_prepared(folder: Path, entry: ModelEntry | AnySaeEntry) -> bool:
    """Whether `folder` holds exactly what `entry` asks for."""
    mark = folder / _FINGERPRINT
    return mark.is_file() and mark.read_text(encoding="ascii") == _fingerprint(entry)


def has_index_of(folder: Path, source: Path | None) -> bool:
    """Whether the prepared SAE in `folder` has the same feature index as the operator's, which may be none."""
    if source is None:
        return not (folder / INDEX_FILE).is_file()
    indexes = [path / INDEX_FILE for path in (folder, source)]
    there = [path.is_file() for path in indexes]
    return there == [False, False] or (all(there) and file_sha256(indexes[0]) == file_sha256(indexes[1]))


@contextmanager
def preparing(folder: Path, entry: ModelEntry | AnySaeEntry) -> Iterator[Path]:
    """A fresh folder to fill; it takes `folder`'s place when the block ends well, and goes when it does not."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        (partial / _FINGERPRINT).write_text(_fingerprint(entry), encoding="ascii")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _fingerprint(entry: ModelEntry | AnySaeEntry) -> str:
    layout = _MODEL_LAYOUT if isinstance(entry, ModelEntry) else _SAE_LAYOUT
    return hashlib.sha256(f"{layout} {entry.model_dump_json()}".encode()).hexdigest()
