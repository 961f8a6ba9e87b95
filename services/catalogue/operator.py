"""The operator's file: which models and SAEs to serve, and where their weights lie.

Paths resolve under `root` (or under an installed package's folder) and may not leave it, symbolic links included.
Weights are pinned by sha256: of the file, or of the sorted listing of a folder's weight files (`weights_sha256`).
"""

import hashlib
import importlib.util
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, ValidationError

from services.contracts.base import CatalogueId, Contract
from services.contracts.errors import ErrorCode, LensdError

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class CatalogueError(LensdError):
    """The operator's file, or what it points at, is not right; raised when preparing, never to a client."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.MODEL_UNAVAILABLE, message)


class GgufSource(Contract):
    """One GGUF file; `package` names an installed Python package that carries it."""

    type: Literal["gguf"]
    path: str
    package: str | None = None
    sha256: Sha256


class FolderSource(Contract):
    """A local Hugging Face folder: config.json, tokenizer.json, safetensors."""

    type: Literal["folder"]
    path: str
    sha256: Sha256


class NativeSource(Contract):
    """A local folder with a model of TransformerLens' own architecture: config.json by its names for sizes, with
    `model_type` "transformer_lens_native", tokenizer.json, safetensors.
    """

    type: Literal["native"]
    path: str
    sha256: Sha256


class HuggingFaceSource(Contract):
    """A repository by name and commit, from a cache in Hugging Face's layout that was filled beforehand."""

    type: Literal["hugging_face"]
    repository: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    cache: str
    sha256: Sha256


ModelSource = Annotated[GgufSource | FolderSource | HuggingFaceSource | NativeSource, Field(discriminator="type")]


class ModelEntry(Contract):
    id: CatalogueId
    name: str
    revision: str
    license: str | None = None
    source: ModelSource


class SaeEntry(Contract):
    """A folder in SAELens' on-disk format."""

    id: CatalogueId
    model: CatalogueId
    path: str
    license: str | None = None
    sha256: Sha256
    config_sha256: Annotated[Sha256 | None, Field(description="Of cfg.json, the conventions.")] = None
    extras_sha256: Annotated[Sha256 | None, Field(description="Of lensd.safetensors, the mean activation.")] = None


class SaeLensEntry(Contract):
    """An SAE by SAELens' release and id, from a cache in Hugging Face's layout that was filled beforehand.

    `release` may also be a repository's name; `sae_id` is then the folder in it. `path`, if given, is the folder where
    its feature index is made, and its card.json is read.
    """

    id: CatalogueId
    model: CatalogueId
    release: Annotated[str, Field(pattern=r"^[\w.-]+(/[\w.-]+)?$")]
    sae_id: Annotated[str, Field(pattern=r"^[\w.:@+=-]+(/[\w.:@+=-]+)*$")]
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    cache: str
    path: str | None = None
    license: str | None = None
    sha256: Sha256
    config_sha256: Annotated[Sha256 | None, Field(description="Of cfg.json as it lies in the cache.")] = None


AnySaeEntry = SaeEntry | SaeLensEntry


def _kind_of_sae(entry: object) -> str:
    named = entry if isinstance(entry, dict) else vars(entry)
    return "saelens" if "release" in named else "folder"


class OperatorCatalogue(Contract):
    root: str = "."
    models: tuple[ModelEntry, ...] = ()
    saes: tuple[
        Annotated[
            Annotated[SaeEntry, Tag("folder")] | Annotated[SaeLensEntry, Tag("saelens")], Discriminator(_kind_of_sae)
        ],
        ...,
    ] = ()


def read_operator_catalogue(path: Path) -> tuple[OperatorCatalogue, Path]:
    """The operator's file and the resolved root of its paths; raises CatalogueError."""
    try:
        catalogue = OperatorCatalogue.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise CatalogueError(f"there is no catalogue at {path}: set LENSD_CATALOGUE") from error
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise CatalogueError(f"{path} is not a valid catalogue: {error}") from error
    _refuse_doubles([entry.id for entry in catalogue.models], "models", path)
    _refuse_doubles([entry.id for entry in catalogue.saes], "saes", path)
    served = {entry.id for entry in catalogue.models}
    for entry in catalogue.saes:
        if entry.model not in served:
            raise CatalogueError(f"SAE {entry.id!r} belongs to model {entry.model!r}, which {path} does not serve")
    return catalogue, (path.parent / catalogue.root).resolve()


def resolve_inside(root: Path, relative: str) -> Path:
    """`relative` under `root`, links followed; raises CatalogueError when it leaves root or does not exist."""
    path = (root / relative).resolve()
    if not path.is_relative_to(root.resolve()):
        raise CatalogueError(f"{relative!r} leads out of {root}: keep it inside, symbolic links included")
    if not path.exists():
        raise CatalogueError(f"{path} does not exist")
    return path


def package_folder(package: str, install: str = "`make install` installs the catalogue's models") -> Path:
    """Where an installed package lies, without importing it; raises CatalogueError, saying how to `install` it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise CatalogueError(f"the package {package!r} is not installed: {install}")
    return Path(spec.origin).parent


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_sha256(files: Sequence[Path]) -> str:
    """The sha256 of one file; of several, that of their sorted `<sha256>  <name>` listing, as sha256sum prints it."""
    if len(files) == 1:
        return file_sha256(files[0])
    listing = "".join(f"{file_sha256(path)}  {path.name}\n" for path in sorted(files))
    return hashlib.sha256(listing.encode()).hexdigest()


def _refuse_doubles(ids: Sequence[str], what: str, path: Path) -> None:
    doubled = sorted({entry for entry in ids if ids.count(entry) > 1})
    if doubled:
        raise CatalogueError(f"{path} lists {', '.join(doubled)} twice among its {what}")
