"""An SAE's folder on disk, in SAELens' format: loading without SAELens, and saving so that SAELens loads it exactly."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from services.saes.activation import Activation, Gated, JumpRelu, Relu, TopK
from services.saes.config import (
    CONFIG_FILE,
    EXTRAS_FILE,
    WEIGHTS_FILE,
    SaeConfig,
    read_config,
    refuse_other_sha256,
    sha256_of,
)
from services.saes.errors import InvalidBundle, SaeMismatch
from services.saes.header import OLD_SCALE, check_header
from services.saes.sae import Sae

SAELENS_FORMAT = "6.54.12"


def _activation(config: SaeConfig, weights: dict[str, Tensor]) -> Activation:
    """The activation function with its own tensors; a new architecture joins here and in `SaeConfig`."""
    match config.architecture:
        case "topk":
            assert config.k is not None
            return TopK(config.k)
        case "standard" | "transcoder" | "skip_transcoder":
            return Relu()
        case "jumprelu" | "jumprelu_transcoder" | "jumprelu_skip_transcoder":
            return JumpRelu(weights["threshold"])
        case "gated":
            return Gated(b_gate=weights["b_gate"], r_mag=weights["r_mag"], b_mag=weights["b_mag"])


def load_sae(
    folder: Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    expected_sha256: str | None = None,
    expected_config_sha256: str | None = None,
    expected_extras_sha256: str | None = None,
    d_model: int | None = None,
) -> Sae:
    """Loads an SAE or a transcoder that reads `d_model` dimensions.

    `expected_sha256` is that of its weights file, the others those of its cfg.json and of its mean activation's file.

    Raises InvalidBundle for files that are missing, damaged, tampered with or unsupported, SaeMismatch when the widths
    differ.
    """
    config, config_sha256 = read_config(folder, expected_sha256=expected_config_sha256)
    if d_model is not None and config.d_in != d_model:
        raise SaeMismatch(f"SAE {folder.name} reads {config.d_in} dimensions, the model has {d_model} there")
    path = folder / WEIGHTS_FILE
    check_header(path, config.shapes())
    sha256 = _pinned(path, expected_sha256)
    if expected_extras_sha256 is not None:
        _pinned(folder / EXTRAS_FILE, expected_extras_sha256)
    weights = _without_old_scale(_finite(path, device, dtype), folder.name)
    folded = config.rescale_acts_by_decoder_norm and config.architecture == "topk"
    if folded:
        _fold_decoder_norms(weights)
    return Sae(
        W_enc=weights["W_enc"],
        b_enc=weights["b_gate" if config.architecture == "gated" else "b_enc"],
        W_dec=weights["W_dec"],
        b_dec=weights["b_dec"],
        activation=_activation(config, weights),
        apply_b_dec_to_input=config.apply_b_dec_to_input,
        hook_name=config.metadata.hook_name,
        model_id=config.metadata.lensd.model_id,
        prepend_bos=config.metadata.prepend_bos,
        norm_threshold=config.metadata.lensd.norm_threshold,
        mean_activation=_mean_activation(folder, config, device, dtype),
        sha256=sha256,
        config_sha256=config_sha256,
        normalize_activations=config.normalize_activations,
        decoder_norms_folded=folded,
        hook_name_out=config.metadata.hook_name_out if config.transcodes else None,
        W_skip=weights.get("W_skip"),
    )


def _without_old_scale(weights: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    scale = weights.pop(OLD_SCALE, None)
    if scale is not None and not torch.allclose(scale, torch.ones_like(scale)):
        raise InvalidBundle(
            f"{name}/{WEIGHTS_FILE} holds a {OLD_SCALE} that is not one: it was fine-tuned with one, which neither "
            "SAELens 6 nor lensd applies"
        )
    return weights


def _pinned(path: Path, expected: str | None) -> str:
    """The file's sha256; raises InvalidBundle when another one was expected, or the file is gone."""
    try:
        sha256 = sha256_of(path)
    except OSError as error:
        raise InvalidBundle(f"{path.parent.name}/{path.name} cannot be read") from error
    refuse_other_sha256(f"{path.parent.name}/{path.name}", sha256, expected)
    return sha256


def _finite(path: Path, device: torch.device | str, dtype: torch.dtype) -> dict[str, Tensor]:
    try:
        tensors = {name: tensor.to(dtype) for name, tensor in load_file(path, device=str(device)).items()}
    except SafetensorError as error:
        raise InvalidBundle(f"{path.parent.name}/{path.name} is not valid safetensors: {error}") from error
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise InvalidBundle(f"{path.parent.name}/{path.name}: {name} holds NaN or infinite values as {dtype}")
    return tensors


def _fold_decoder_norms(weights: dict[str, Tensor]) -> None:
    """Makes decoder rows unit vectors; the same SAE as one that scales its activations by their norms."""
    norms = weights["W_dec"].norm(dim=-1).clamp(min=1e-8)
    weights["W_enc"] = weights["W_enc"] * norms
    weights["b_enc"] = weights["b_enc"] * norms
    weights["W_dec"] = weights["W_dec"] / norms[:, None]


def _mean_activation(folder: Path, config: SaeConfig, device: torch.device | str, dtype: torch.dtype) -> Tensor | None:
    path = folder / EXTRAS_FILE
    if not path.exists():
        return None
    check_header(path, {"mean_activation": (config.written,)})
    return _finite(path, device, dtype)["mean_activation"]


def save_sae(sae: Sae, folder: Path, *, model_name: str, context: int, dtype: torch.dtype = torch.float16) -> None:
    """Writes the folder. Weights are stored as `dtype` and computed with in float32, by SAELens too.

    `model_name` is the model's Hugging Face name, `context` the length of the rows it was trained on; both for SAELens.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.to(dtype).contiguous() for name, tensor in _tensors(sae).items()}
    write_tensors(weights, folder / WEIGHTS_FILE)
    if sae.mean_activation is not None:
        write_tensors({"mean_activation": sae.mean_activation.float()}, folder / EXTRAS_FILE)
    metadata = {
        "sae_lens_version": SAELENS_FORMAT,
        "sae_lens_training_version": None,
        "model_name": model_name,
        "hook_name": sae.hook_name,
        "hook_head_index": None,
        **({} if sae.hook_name_out is None else {"hook_name_out": sae.hook_name_out}),
        "prepend_bos": sae.prepend_bos,
        "context_size": context,
        "lensd": {"model_id": sae.model_id, "norm_threshold": sae.norm_threshold},
    }
    config = {
        "architecture": sae.architecture,
        "d_in": sae.d_model,
        "d_sae": sae.d_sae,
        **({} if sae.hook_name_out is None else {"d_out": sae.d_out}),
        **({} if sae.k is None else {"k": sae.k, "rescale_acts_by_decoder_norm": False}),
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": sae.apply_b_dec_to_input,
        "normalize_activations": sae.normalize_activations,
        "reshape_activations": "hook_z" if sae.hook_name.endswith("hook_z") else "none",
        "metadata": metadata,
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _tensors(sae: Sae) -> dict[str, Tensor]:
    """By SAELens' names. A gated SAE has no b_enc: its gate's bias stands in for it in memory."""
    tensors = {"W_enc": sae.W_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}
    if sae.W_skip is not None:
        tensors["W_skip"] = sae.W_skip
    match sae.activation:
        case Gated(b_gate=b_gate, r_mag=r_mag, b_mag=b_mag):
            return tensors | {"b_gate": b_gate, "r_mag": r_mag, "b_mag": b_mag}
        case JumpRelu(threshold=threshold):
            return tensors | {"b_enc": sae.b_enc, "threshold": threshold}
        case _:
            return tensors | {"b_enc": sae.b_enc}


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """A safetensors file that everybody can read."""
    save_file(tensors, path)
    path.chmod(0o644)  # safetensors makes files that only their owner can read
