"""Tiny models of the families, prepared into a store as an operator would."""

from pathlib import Path

from services.catalogue.operator import FolderSource, ModelEntry, NativeSource, weights_sha256
from services.contracts.model import ModelFacts
from services.models.prepare import prepare_model
from tests.families import NATIVES, build_family


def tiny_entry(family: str, root: Path) -> ModelEntry:
    """Build the family's folder under `root` and describe it as an entry of a catalogue."""
    folder = build_family(family, root / family)
    sha256 = weights_sha256([folder / "model.safetensors"])
    source = (
        NativeSource(type="native", path=family, sha256=sha256)
        if family in NATIVES
        else FolderSource(type="folder", path=family, sha256=sha256)
    )
    return ModelEntry(id=f"tiny-{family.replace('_', '-')}", name=family, revision="1", source=source)


def prepare_family(family: str, root: Path, home: Path) -> ModelFacts:
    """A tiny model in the store under `home`."""
    return prepare_model(tiny_entry(family, root), root, home)
