"""From the cached files of a release to a folder in SAELens' format: copied as they are, or converted."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file

from services.catalogue.operator import AnySaeEntry, CatalogueError, SaeLensEntry, file_sha256
from services.saes.bundle import write_tensors
from services.saes.config import CONFIG_FILE, WEIGHTS_FILE
from services.saes.formats.origin import Format, Origin
from services.saes.hub import HubFolder, cached_files, locate


def take_released(entry: SaeLensEntry, root: Path, partial: Path) -> float | None:
    """Fills `partial` with cfg.json, overrides of the release included, and the weights; returns its norm scale.

    Raises CatalogueError for files that are not in the cache, not the pinned ones, or not laid out as expected.
    """
    located = locate(entry)
    files = cached_files(entry, located, root)
    if located.format is None:
        _copy(entry, located, files, partial)
        check_weights(entry, partial / WEIGHTS_FILE)
    else:
        check_weights(entry, files[located.weights], f"{located.filename(located.weights)} of {located.repository}")
        _convert(entry, located, located.format, files, partial)
    return located.norm_scale


def check_weights(entry: AnySaeEntry, path: Path, name: str = WEIGHTS_FILE) -> None:
    """Raises CatalogueError when it is not the file that the operator pinned; one that is gone is told of later."""
    if path.is_file() and (sha256 := file_sha256(path)) != entry.sha256:
        raise CatalogueError(f"{entry.id}: {name} has sha256 {sha256}, expected {entry.sha256}")


def _copy(entry: SaeLensEntry, located: HubFolder, files: Mapping[str, Path], partial: Path) -> None:
    """The files themselves, not links to them."""
    for path, name in zip(files.values(), (WEIGHTS_FILE, CONFIG_FILE), strict=True):
        shutil.copyfile(path, partial / name)
    if located.overrides:
        try:
            config = dict(json.loads((partial / CONFIG_FILE).read_bytes()))
        except (ValueError, TypeError) as error:
            raise CatalogueError(f"{entry.id}: {CONFIG_FILE} is no JSON object") from error
        (partial / CONFIG_FILE).write_text(json.dumps(config | dict(located.overrides)), encoding="utf-8")


def _convert(entry: SaeLensEntry, located: HubFolder, layout: Format, files: Mapping[str, Path], partial: Path) -> None:
    try:
        said = {name: _said(path, name) for name, path in files.items() if name != located.weights}
        origin = Origin(located.repository, located.folder, said, load_file(files[located.weights]))
        made = layout.convert(origin)
    except (ValueError, LookupError, TypeError, ArithmeticError, SafetensorError, yaml.YAMLError) as error:
        raise CatalogueError(
            f"{entry.id}: {located.folder} of {located.repository} is not laid out as SAELens reads it: {error}"
        ) from error
    write_tensors(made.weights, partial / WEIGHTS_FILE)
    (partial / CONFIG_FILE).write_text(json.dumps(made.config | dict(located.overrides), indent=2), encoding="utf-8")


def _said(path: Path, name: str) -> Any:
    content = path.read_bytes()
    return json.loads(content) if name.endswith(".json") else yaml.safe_load(content)
