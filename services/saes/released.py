"""From the cached files of a release to a folder in SAELens' format: copied as they are, or converted."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from yaml import YAMLError

from services.catalogue.operator import AnySaeEntry, CatalogueError, SaeLensEntry, file_sha256
from services.saes.bundle import write_tensors
from services.saes.config import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    parse_json,
    read_bounded,
    read_object,
    refuse_other_sha256,
    sha256_of,
)
from services.saes.formats.origin import Format, Origin
from services.saes.hub import HubFolder, cached_files, locate


def take_released(entry: SaeLensEntry, root: Path, partial: Path) -> float | None:
    """Fills `partial` with cfg.json, overrides of the release included, and the weights; returns its norm scale.

    Raises CatalogueError or InvalidBundle for files that are not in the cache, not the pinned ones, or not laid out as
    expected.
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
    config = partial / CONFIG_FILE
    refuse_other_sha256(CONFIG_FILE, sha256_of(config), entry.config_sha256)
    if located.overrides:
        config.write_text(json.dumps(read_object(config) | dict(located.overrides)), encoding="utf-8")


def _convert(entry: SaeLensEntry, located: HubFolder, layout: Format, files: Mapping[str, Path], partial: Path) -> None:
    if entry.config_sha256 is not None:
        message = f"{located.repository} has no {CONFIG_FILE} of its own: leave config_sha256 out, its commit pins it"
        raise CatalogueError(f"{entry.id}: {message}")
    try:
        said = {name: _said(path, name) for name, path in files.items() if name != located.weights}
        origin = Origin(located.repository, located.folder, said, load_file(files[located.weights]))
        made = layout.convert(origin)
    except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError, SafetensorError, YAMLError) as error:
        raise CatalogueError(
            f"{entry.id}: {located.folder} of {located.repository} is not laid out as SAELens reads it: {error}"
        ) from error
    write_tensors(made.weights, partial / WEIGHTS_FILE)
    (partial / CONFIG_FILE).write_text(json.dumps(made.config | dict(located.overrides), indent=2), encoding="utf-8")


def _said(path: Path, name: str) -> Any:
    content = read_bounded(path)
    return parse_json(content, name) if name.endswith(".json") else yaml.safe_load(content)
