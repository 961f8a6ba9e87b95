"""What SAELens can hold and lensd does not read, each refused by a sentence that says why."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services.saes.errors import InvalidBundle

TRANSCODER = "a transcoder writes at another site than it reads; lensd reads autoencoders"

UNREAD: Mapping[tuple[str, str], str] = {
    ("architecture", "temporal"): "a temporal SAE's features depend on the tokens before; lensd encodes token by token",
    ("architecture", "matching_pursuit"): "matching pursuit chooses features one after another; lensd encodes at once",
    ("architecture", "abstopk"): "AbsTopK features may be negative; lensd's are at least zero",
    ("architecture", "transcoder"): TRANSCODER,
    ("architecture", "skip_transcoder"): TRANSCODER,
    ("architecture", "jumprelu_transcoder"): TRANSCODER,
    ("architecture", "jumprelu_skip_transcoder"): TRANSCODER,
    ("reshape_activations", "hook_z"): "it reads all heads' z side by side; lensd reads SAEs of the residual stream, "
    "attn_out and mlp_out",
    ("normalize_activations", "covariance_whitening"): "its whitening is not folded into the weights; fold it with "
    "SAELens' fold_activation_whitening before saving",
}

PICKLED_OR_PACKED = (".npz", ".pt", ".pth", ".bin", ".pkl")


def refuse_unread(config: Mapping[str, Any], name: str) -> None:
    """Raises InvalidBundle for a cfg.json that asks for what lensd does not read."""
    for (key, value), why in UNREAD.items():
        if config.get(key) == value:
            raise InvalidBundle(f"{name}: {key} is {value}: {why}")


def refuse_other_files(folder: Path) -> None:
    """Raises InvalidBundle for a folder whose weights are in files that lensd never opens."""
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.suffix in PICKLED_OR_PACKED:
            raise InvalidBundle(
                f"{folder.name} holds {path.name}: lensd reads safetensors only; load it with SAELens and save it with "
                "save_model"
            )
