"""From SAELens' names of an SAE, a release and an id, to its folder in a Hugging Face cache that was filled beforehand.

1. look the release up in `pretrained_saes.yaml` of the installed SAELens, without importing it; or take a release that
   is a repository's name as that, and the id as the folder;
2. refuse a format that lensd does not read;
3. find the files of the pinned revision in the cache; nothing is downloaded, no link may lead out of the repository.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from huggingface_hub import try_to_load_from_cache

from services.catalogue.operator import CatalogueError, SaeLensEntry, package_folder, resolve_inside
from services.saes.config import CONFIG_FILE, WEIGHTS_FILE
from services.saes.formats.origin import Format
from services.saes.formats.table import FORMATS, REFUSED, UNKNOWN

DIRECTORY = "pretrained_saes.yaml"

_INSTEAD = "an SAE that SAELens itself can load and save_model to a folder is named by that folder as `path`"

_HARMLESS = {"dataset_path", "neuronpedia_id"}
"""What releases override in cfg.json that no activation depends on."""


@dataclass(frozen=True)
class HubFolder:
    """A folder of a repository, and what the release says besides its files.

    `format` is None for SAELens' own. `norm_scale` is what SAELens multiplies the SAE's input by.
    """

    repository: str
    folder: str
    overrides: Mapping[str, Any]
    format: Format | None = None
    norm_scale: float | None = None

    @property
    def weights(self) -> str:
        """The weights' file in the repository, by a template of it."""
        return f"{{folder}}/{WEIGHTS_FILE}" if self.format is None else self.format.weights

    @property
    def needed(self) -> tuple[str, ...]:
        """The files without which there is no SAE, likewise."""
        return (self.weights, *((f"{{folder}}/{CONFIG_FILE}",) if self.format is None else self.format.needs))

    @property
    def optional(self) -> tuple[str, ...]:
        """The files that are read where there are any."""
        return () if self.format is None else self.format.reads

    def filename(self, name: str) -> str:
        """A template's file in the repository."""
        return str(PurePosixPath(name.replace("{folder}", self.folder)))


@cache
def releases() -> Mapping[str, Any]:
    """SAELens' own directory of releases; raises CatalogueError when SAELens is not installed."""
    path = package_folder("sae_lens", install="pip install sae-lens where SAEs are prepared") / DIRECTORY
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    with path.open("rb") as file:
        found: Mapping[str, Any] = yaml.load(file, Loader=loader)  # noqa: S506 - both are safe loaders
    return found


def locate(entry: SaeLensEntry, directory: Mapping[str, Any] | None = None) -> HubFolder:
    """Where the release keeps the SAE; `directory` takes the place of the installed SAELens' own.

    Raises CatalogueError for a release or an id that SAELens does not know, and for one that lensd cannot read.
    """
    if "/" in entry.release:
        return HubFolder(entry.release, entry.sae_id, {})
    known = releases() if directory is None else directory
    release = known.get(entry.release)
    if release is None:
        raise CatalogueError(
            f"{entry.id}: SAELens knows no release {entry.release!r}; name one of its table of pretrained SAEs, or a "
            "repository as owner/name with the folder as `sae_id`"
        )
    found = next((sae for sae in release["saes"] if sae["id"] == entry.sae_id), None)
    if found is None:
        some = ", ".join(str(sae["id"]) for sae in release["saes"][:5])
        raise CatalogueError(f"{entry.id}: {entry.release} has no SAE {entry.sae_id!r}; it has {some}, …")
    kind = release.get("conversion_func")
    if kind is not None and kind not in FORMATS:
        raise CatalogueError(f"{entry.id}: {entry.release} is not read: {REFUSED.get(kind, UNKNOWN)}; {_INSTEAD}")
    overrides = {key: value for key, value in (release.get("config_overrides") or {}).items() if key not in _HARMLESS}
    return HubFolder(
        release["repo_id"],
        str(found["path"]),
        overrides,
        None if kind is None else FORMATS[kind],
        found.get("norm_scaling_factor"),
    )


def cached_files(entry: SaeLensEntry, located: HubFolder, root: Path) -> dict[str, Path]:
    """The SAE's files in the cache by their templates, links followed.

    Raises CatalogueError when one that is needed is not there, or one leads out of its repository.
    """
    cache_folder = resolve_inside(root, entry.cache)
    repository = (cache_folder / f"models--{located.repository.replace('/', '--')}").resolve()
    if not repository.is_relative_to(cache_folder):
        raise CatalogueError(
            f"{entry.id}: the folder of {located.repository} leads out of {cache_folder}: keep the repository itself "
            "in the cache, not a link to it"
        )
    found: dict[str, Path] = {}
    for name in (*located.needed, *located.optional):
        filename = located.filename(name)
        where = f"{filename} of {located.repository} at {entry.revision}"
        try:
            path = try_to_load_from_cache(located.repository, filename, cache_folder, entry.revision)
        except ValueError as error:
            raise CatalogueError(f"{entry.id}: {where} is no name of a file: {error}") from error
        if isinstance(path, str):
            found[name] = _inside(Path(path), repository, f"{entry.id}: {where} leads out of its repository")
        elif name in located.needed:
            raise CatalogueError(
                f"{entry.id}: {where} is not in {cache_folder}: fill the cache on a machine with network "
                f"(hf download {located.repository} --revision {entry.revision} {_include(located)} --cache-dir …); "
                "nothing but safetensors is read"
            )
    return found


def _include(located: HubFolder) -> str:
    return " ".join(f"--include '{located.filename(name)}'" for name in (*located.needed, *located.optional))


def _inside(path: Path, repository: Path, otherwise: str) -> Path:
    resolved = path.resolve()
    if not resolved.is_relative_to(repository) or not resolved.is_file():
        raise CatalogueError(otherwise)
    return resolved
