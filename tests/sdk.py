"""A Python client generated from openapi.yaml, as an application's author would make it."""

import importlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from api.openapi import FILE

PACKAGE = "lensd_client"
CONFIG = """\
post_hooks: []
content_type_overrides:  # The generator does not know pictures: they are files.
  image/svg+xml: application/octet-stream
  image/png: application/octet-stream
  application/jsonl: application/octet-stream  # Nor lines: they are files too.
"""


@contextmanager
def generated_sdk(folder: Path) -> Iterator[ModuleType]:
    """The generated package, importable for the length of the block; generating it gives no warning."""
    (folder / "config.yaml").write_text(CONFIG, encoding="utf-8")
    generator = str(Path(sys.executable).with_name("openapi-python-client"))
    arguments = ["--path", str(FILE), "--output-path", "out", "--config", "config.yaml", "--fail-on-warning"]
    run = subprocess.run([generator, "generate", *arguments], cwd=folder, check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Unable" not in run.stdout
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder / "out")
        yield importlib.import_module(PACKAGE)
        for name in [name for name in sys.modules if name.split(".")[0] == PACKAGE]:
            del sys.modules[name]


def part(path: str) -> Any:
    """A module of the generated package."""
    return importlib.import_module(f"{PACKAGE}.{path}")
