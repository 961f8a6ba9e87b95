"""What SAELens changes after loading, or asks of the model, put into the weights once, when an SAE is prepared.

The norm scale s of a release (`norm_scaling_factor`): the SAE was trained on s x.

    W_enc ← s W_enc      W_dec ← W_dec / s      b_dec ← b_dec / s

A model loaded with `center_writing_weights` has P x = x − mean(x) in its residual stream, in attn_out and mlp_out, as
every weight that writes there is centred and nothing but LayerNorms reads there. With P x for x:

    W_enc ← P W_enc      b_enc ← b_enc − mean(b_dec) 1ᵀW_enc, where b_dec is subtracted from the input

Features are then those of the centred model. x̂ rebuilds P x: the mean, which no LayerNorm passes on, is in the error.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from services.saes.bundle import SAELENS_FORMAT, write_tensors
from services.saes.config import CONFIG_FILE, WEIGHTS_FILE, SaeConfig, parse_json, read_bounded, read_config
from services.saes.errors import InvalidBundle
from services.saes.header import check_header
from services.saes.legacy import as_of_6_0

SCALED = "expected_average_only_in"
CENTRING = "center_writing_weights"

_LAYER_NORMED = "gpt2"
"""How the names of models begin whose every reader is known to be a LayerNorm."""

_WRITTEN = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_out", "hook_attn_out", "hook_mlp_out")


def fold(folder: Path, norm_scale: float | None) -> None:
    """Folds in place what the SAE asks for and can be folded; what remains is for `load_sae` to refuse.

    Raises InvalidBundle for files that are not what they say.
    """
    path = folder / CONFIG_FILE
    try:
        config = as_of_6_0(parse_json(read_bounded(path), CONFIG_FILE))
    except (OSError, InvalidBundle, TypeError):
        return
    if not isinstance(config.get("metadata"), dict):
        return
    scale = norm_scale if config.get("normalize_activations") == SCALED else None
    centred = _is_centred(config)
    if scale is None and not centred:
        return
    path.write_text(json.dumps(_folded(config, scale, centred), indent=2), encoding="utf-8")
    (read, _), weights_path = read_config(folder), folder / WEIGHTS_FILE
    check_header(weights_path, read.shapes())
    weights = {name: tensor.float() for name, tensor in load_file(weights_path).items()}
    if scale is not None:
        weights |= {"W_enc": weights["W_enc"] * scale, "W_dec": weights["W_dec"] / scale}
        weights["b_dec"] = weights["b_dec"] / scale
    if centred:
        _centre(weights, read)
    # Not over the file itself, which tensors that were not changed may still be mapped from.
    write_tensors(weights, folder / "folded.safetensors")
    (folder / "folded.safetensors").replace(weights_path)


def _is_centred(config: dict[str, Any]) -> bool:
    """Whether it wants a centred model, and the centring can be folded."""
    metadata = config["metadata"]
    processing = metadata.get("model_from_pretrained_kwargs")
    return (
        isinstance(processing, dict)
        and bool(processing.get(CENTRING))
        and str(metadata.get("model_name")).startswith(_LAYER_NORMED)
        and str(metadata.get("hook_name")).endswith(_WRITTEN)
        and config.get("normalize_activations", "none") in ("none", SCALED)
        and not str(config.get("architecture")).endswith("transcoder")
    )


def _folded(config: dict[str, Any], scale: float | None, centred: bool) -> dict[str, Any]:
    metadata = {**config["metadata"], "sae_lens_version": SAELENS_FORMAT}
    if centred:
        metadata["model_from_pretrained_kwargs"] = {
            key: value for key, value in metadata["model_from_pretrained_kwargs"].items() if key != CENTRING
        }
    normalized = {} if scale is None else {"normalize_activations": "none"}
    return {**config, **normalized, "dtype": "float32", "metadata": metadata}


def _centre(weights: dict[str, Tensor], config: SaeConfig) -> None:
    columns = weights["W_enc"].sum(dim=0, dtype=torch.float64)
    weights["W_enc"] = weights["W_enc"] - (columns / config.d_in).float()
    if not config.apply_b_dec_to_input:
        return
    shift = -weights["b_dec"].mean(dtype=torch.float64) * columns
    if config.architecture == "gated":
        weights["b_gate"] = (weights["b_gate"] + shift).float()
        weights["b_mag"] = (weights["b_mag"] + shift * weights["r_mag"].exp()).float()
    else:
        weights["b_enc"] = (weights["b_enc"] + shift).float()
