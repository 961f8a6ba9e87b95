"""The store of prepared models and SAEs: what is there already, and how something new gets in whole or not at all.

An entry is prepared into `<kind>/.<id>.partial` and renamed when complete. A fingerprint of the operator's entry beside
the facts tells whether it must be prepared again.
"""

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.catalogue.operator import ModelEntry, SaeEntry

_LAYOUT = 2
"""Raise it when what a prepared folder holds changes."""

_FINGERPRINT = "prepared"


def is_prepared(folder: Path, entry: ModelEntry | SaeEntry) -> bool:
    """Whether `folder` holds exactly what `entry` asks for."""
    mark = folder / _FINGERPRINT
    return mark.is_file() and mark.read_text(encoding="ascii") == _fingerprint(entry)


@contextmanager
def preparing(folder: Path, entry: ModelEntry | SaeEntry) -> Iterator[Path]:
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


def _fingerprint(entry: ModelEntry | SaeEntry) -> str:
    return hashlib.sha256(f"{_LAYOUT} {entry.model_dump_json()}".encode()).hexdigest()
