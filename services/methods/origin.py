"""What decides the numbers of every job alike, as one digest that can be compared before anything has run."""

import hashlib
import json
from functools import cache
from pathlib import Path

import torch

import services
from services.methods.context import installed_versions

_COMPUTES = ("catalogue", "contracts", "engine", "methods", "models", "saes")
"""The rooms of `services` that a result depends on."""


def runner(device: torch.device, dtype: torch.dtype) -> str:
    """The digest of lensd's code, the libraries' versions, the device and the type of numbers."""
    parts = [installed_versions().model_dump(), source_sha256(Path(services.__file__).parent), str(device), str(dtype)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@cache
def source_sha256(root: Path) -> str:
    """Of the code under `root` itself: a version says nothing of what was changed since, nor of a method's."""
    digest = hashlib.sha256()
    for path in sorted(path for room in _COMPUTES for path in (root / room).rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()
