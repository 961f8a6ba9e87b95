"""What SAELens can hold and lensd does not read, each refused by a sentence that says why."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from services.saes.errors import InvalidBundle

UNREAD: Mapping[tuple[str, str], str] = {
    ("architecture", "temporal"): "a temporal SAE's features depend on the tokens before; lensd encodes token by token",
    ("architecture", "matching_pursuit"): "matching pursuit chooses features one after another; lensd encodes at once",
    ("architecture", "abstopk"): "AbsTopK features may be negative; lensd's are at least zero",
    ("normalize_activations", "covariance_whitening"): "its whitening is not folded into the weights; fold it with "
    "SAELens' fold_activation_whitening before saving",
}

WEIGHT_PROCESSING: Mapping[str, str] = {
    "center_writing_weights": "lensd folds the centring into SAEs of GPT-2's residual stream, attn_out and mlp_out "
    "alone, when they are prepared",
    "fold_value_biases": "lensd changes no weights of models",
}
"""TransformerLens' loading options that change what the hook points of SAEs hold, and what lensd does about them."""

PICKLED_OR_PACKED = (".npz", ".pt", ".pth", ".bin", ".pkl")


def refuse_unread(config: Mapping[str, Any], name: str) -> None:
    """Raises InvalidBundle for a cfg.json that asks for what lensd does not read."""
    for (key, value), why in UNREAD.items():
        if config.get(key) == value:
            raise InvalidBundle(f"{name}: {key} is {value}: {why}")
    metadata = config.get("metadata")
    for why in _metadata_unread(metadata) if isinstance(metadata, dict) else ():
        raise InvalidBundle(f"{name}: {why}")


def _metadata_unread(metadata: Mapping[str, Any]) -> Iterator[str]:
    head = metadata.get("hook_head_index")
    if head is not None:
        yield f"hook_head_index is {head!r:.80}: it reads one head; lensd reads a site with all of its heads"
    processing = metadata.get("model_from_pretrained_kwargs") or {}
    for key, what in WEIGHT_PROCESSING.items():
        if isinstance(processing, dict) and processing.get(key):
            yield f"it was trained on a model loaded with {key}, whose activations are others; {what}"


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
