"""Llama Scope (He et al. 2024, arXiv:2410.20526): JumpReLU SAEs of Llama 3.1 8B, and of its R1 distillation.

Both see activations scaled to norm √d on average: the registry's factor, folded in afterwards. The first has one
threshold for all features, in units of its own training, which SAELens multiplies by the file's own factor.
"""

import torch

from services.saes.formats.origin import Converted, Format, Origin, Weights, converted

_MODEL = "meta-llama/Llama-3.1-8B"
_HYPERPARAMETERS, _CONFIG = "{folder}/hyperparams.json", "{folder}/config.json"


def _convert(origin: Origin) -> Converted:
    weights = _matrices(origin)
    d_in, d_sae = weights["W_enc"].shape
    norms = origin.field(_HYPERPARAMETERS, "dataset_average_activation_norm", dict)
    scale = d_in**0.5 / float(norms["in"])
    threshold = float(origin.field(_HYPERPARAMETERS, "jump_relu_threshold", float)) * scale
    weights["threshold"] = torch.full((d_sae,), threshold, dtype=torch.float32)
    return _scaled(weights, origin.field(_HYPERPARAMETERS, "hook_point_in", str))


def _convert_distilled(origin: Origin) -> Converted:
    weights = _matrices(origin)
    weights["threshold"] = origin.tensor("log_jumprelu_threshold").float().exp()
    return _scaled(weights, origin.field(_CONFIG, "hook_point_in", str))


def _matrices(origin: Origin) -> Weights:
    return {
        "W_enc": origin.tensor("encoder.weight").T,
        "W_dec": origin.tensor("decoder.weight").T,
        "b_enc": origin.tensor("encoder.bias"),
        "b_dec": origin.tensor("decoder.bias"),
    }


def _scaled(weights: Weights, hook_name: str) -> Converted:
    metadata = {"model_name": _MODEL, "hook_name": hook_name, "context_size": 1024}
    return converted("jumprelu", weights, metadata, normalize_activations="expected_average_only_in")


LLAMA_SCOPE = Format("{folder}/checkpoints/final.safetensors", _convert, needs=(_HYPERPARAMETERS,))
LLAMA_SCOPE_R1_DISTILL = Format("{folder}/sae_weights.safetensors", _convert_distilled, needs=(_CONFIG,))
