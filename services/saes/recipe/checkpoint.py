"""Where a stage that was cut short goes on: tensors in a file that is either whole or not there."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor


def keep(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Puts these tensors in the place of those kept before."""
    partial = path.with_suffix(".part")
    save_file({name: tensor.detach() for name, tensor in tensors.items()}, partial)
    partial.replace(path)


def kept(path: Path | None) -> Mapping[str, Tensor] | None:
    """What was kept there last; None if nothing was, or there is no place to keep things."""
    return load_file(path) if path is not None and path.exists() else None
