"""What a converter is given and what it makes: an SAE in somebody's own layout, and the same one in SAELens'."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from services.saes.bundle import SAELENS_FORMAT

Weights = dict[str, Tensor]


class Unconvertible(ValueError):
    """The files are not laid out as SAELens reads them; the message says what is missing."""


@dataclass(frozen=True)
class Origin:
    """A cached SAE: its repository, its folder there, what its small files say by their names, and its tensors."""

    repository: str
    folder: str
    said: Mapping[str, Any]
    weights: Weights

    @property
    def layer(self) -> int:
        """The layer that the folder's name gives, as in `layer_12_width_16k`."""
        found = re.search(r"layer_(\d+)", self.folder)
        if found is None:
            raise Unconvertible(f"the name {self.folder} gives no layer")
        return int(found[1])

    def tensor(self, name: str) -> Tensor:
        if name not in self.weights:
            raise Unconvertible(f"the weights hold {sorted(self.weights)[:8]}, not {name}")
        return self.weights[name]

    def field(self, file: str, name: str, kind: type) -> Any:
        """An entry of a small file; a whole number passes for a float."""
        content = self.said.get(file)
        value = content.get(name) if isinstance(content, dict) else None
        if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
            raise Unconvertible(f"{file.replace('{folder}', self.folder)} says no {name}")
        return value


@dataclass(frozen=True)
class Converted:
    """`cfg.json` of SAELens 6 and the tensors by its names."""

    config: dict[str, Any]
    weights: Weights


@dataclass(frozen=True)
class Format:
    """Which files of the repository hold an SAE ({folder} stands for its folder), and how they are read.

    `weights` is pinned by the operator; of the small files, those that it `needs` must be there.
    """

    weights: str
    convert: Callable[[Origin], Converted]
    needs: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()


def converted(architecture: str, weights: Weights, metadata: Mapping[str, Any], **more: Any) -> Converted:
    """In SAELens' form, with the widths that the tensors have; none of these SAEs subtracts b_dec from its input."""
    for name in ("W_enc", "W_dec"):
        if weights[name].dim() != 2:
            raise Unconvertible(f"{name} has the shape {list(weights[name].shape)}, not two axes")
    d_in, d_sae = weights["W_enc"].shape
    heads = str(metadata["hook_name"]).endswith("hook_z")
    config: dict[str, Any] = {
        "architecture": architecture,
        "d_in": d_in,
        "d_sae": d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "hook_z" if heads else "none",
        "metadata": {"sae_lens_version": SAELENS_FORMAT, "prepend_bos": True, **metadata},
        **({"d_out": weights["W_dec"].shape[1]} if architecture.endswith("transcoder") else {}),
        **more,
    }
    return Converted(config, {name: tensor.contiguous() for name, tensor in weights.items()})
