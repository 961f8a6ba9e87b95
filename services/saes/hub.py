"""From SAELens' names of an SAE, a release and an id, to its folder in a Hugging Face cache that was filled beforehand.

1. look the release up in `pretrained_saes.yaml` of the installed SAELens, without importing it; or take a release that
   is a repository's name as that, and the id as the folder;
2. refuse what is not in SAELens' own format, or what SAELens would change after loading;
3. find the files of the pinned revision in the cache; nothing is downloaded, no link may lead out of the repository.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from huggingface_hub import try_to_load_from_cache

from services.catalogue.operator import CatalogueError, SaeLensEntry, package_folder, resolve_inside
from services.saes.config import CONFIG_FILE, WEIGHTS_FILE

DIRECTORY = "pretrained_saes.yaml"

_CONVERT = "load it with SAELens, save it with save_model, and name that folder as `path`"

_HARMLESS = {"dataset_path", "neuronpedia_id"}
"""What releases override in cfg.json that no activation depends on."""


@dataclass(frozen=True)
class HubFolder:
    """A folder of a repository, and what the release says besides its cfg.json."""

    repository: str
    folder: str
    overrides: Mapping[str, Any]


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
    for why in _unread(release, found):
        raise CatalogueError(f"{entry.id}: {entry.release} {why}: {_CONVERT}")
    overrides = {key: value for key, value in (release.get("config_overrides") or {}).items() if key not in _HARMLESS}
    return HubFolder(release["repo_id"], str(found["path"]), overrides)


def _unread(release: Mapping[str, Any], sae: Mapping[str, Any]) -> Iterator[str]:
    if release.get("conversion_func"):
        yield f"is not in SAELens' own format (SAELens converts it by {release['conversion_func']})"
    if "norm_scaling_factor" in sae:
        yield "has a norm_scaling_factor, which SAELens folds into the weights after loading"


def cached_files(entry: SaeLensEntry, located: HubFolder, root: Path) -> dict[str, Path]:
    """cfg.json and the weights in the cache, links followed; raises CatalogueError when they are not there."""
    cache_folder = resolve_inside(root, entry.cache)
    repository = (cache_folder / f"models--{located.repository.replace('/', '--')}").resolve()
    if not repository.is_relative_to(cache_folder):
        raise CatalogueError(
            f"{entry.id}: the folder of {located.repository} leads out of {cache_folder}: keep the repository itself "
            "in the cache, not a link to it"
        )
    found: dict[str, Path] = {}
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        filename = str(PurePosixPath(located.folder) / name)
        where = f"{filename} of {located.repository} at {entry.revision}"
        try:
            path = try_to_load_from_cache(located.repository, filename, cache_folder, entry.revision)
        except ValueError as error:
            raise CatalogueError(f"{entry.id}: {where} is no name of a file: {error}") from error
        if not isinstance(path, str):
            raise CatalogueError(
                f"{entry.id}: {where} is not in {cache_folder}: fill the cache on a machine with network "
                f"(hf download {located.repository} --revision {entry.revision} --include '{located.folder}/*' "
                "--cache-dir …); nothing but safetensors in SAELens' format is read"
            )
        resolved = Path(path).resolve()
        if not resolved.is_relative_to(repository) or not resolved.is_file():
            raise CatalogueError(f"{entry.id}: {where} leads out of its repository in {cache_folder}")
        found[name] = resolved
    return found
