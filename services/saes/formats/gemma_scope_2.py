"""Gemma Scope 2, SAEs and transcoders of Gemma 3: JumpReLU, by DeepMind's names.

SAELens puts the transcoders at `hook_mlp_in`, which TransformerLens has before the norm. The files say
`pre_feedforward_layernorm.output`, behind it: what the MLP reads, `mlp.hook_in`.
SAELens leaves the heads of `attn_out` as they come; these SAEs read the input of o_proj, all heads side by side.
"""

from typing import Any

from services.saes.formats.origin import Converted, Format, Origin, Unconvertible, converted

_HOOKS = {
    "resid_post": "hook_resid_post",
    "attn_out": "attn.hook_z",
    "mlp_out": "hook_mlp_out",
    "transcoder": "mlp.hook_in",
}

_NAMES = {"W_enc": "w_enc", "W_dec": "w_dec", "b_enc": "b_enc", "b_dec": "b_dec", "threshold": "threshold"}

_CONFIG = "{folder}/config.json"


def _convert(origin: Origin) -> Converted:
    said = origin.said.get(_CONFIG) or _named(origin)
    if not isinstance(said, dict) or said.get("architecture") != "jump_relu":
        raise Unconvertible("config.json does not say that the architecture is jump_relu")
    hook = next((hook for part, hook in _HOOKS.items() if part in origin.folder), None)
    if hook is None:
        raise Unconvertible(f"the name {origin.folder} says none of {', '.join(_HOOKS)}")
    weights = {ours: origin.tensor(theirs) for ours, theirs in _NAMES.items()}
    metadata: dict[str, Any] = {
        "model_name": _model(str(said["model_name"])),
        "hook_name": f"blocks.{origin.layer}.{hook}",
        "context_size": 1024,
    }
    if hook != _HOOKS["transcoder"]:
        return converted("jumprelu", weights, metadata)
    metadata["hook_name_out"] = f"blocks.{origin.layer}.hook_mlp_out"
    if not said.get("affine_connection", False):
        return converted("jumprelu_transcoder", weights, metadata)
    # They keep [d_in, d_out], SAELens [d_out, d_in].
    weights["W_skip"] = origin.tensor("affine_skip_connection").T
    return converted("jumprelu_skip_transcoder", weights, metadata)


def _named(origin: Origin) -> dict[str, Any]:
    """What config.json would say, by the names of the repository and the folder; some folders have none."""
    return {
        "architecture": "jump_relu",
        "model_name": origin.repository.replace("gemma-scope-2", "gemma-3"),
        "affine_connection": "affine" in origin.folder,
    }


def _model(name: str) -> str:
    """Its Hugging Face name; the smallest model's has no -pt."""
    name = (name if "google" in name else f"google/{name}").replace("-v3", "-3")
    return name.replace("-pt", "") if "270m" in name else name


GEMMA_SCOPE_2 = Format("{folder}/params.safetensors", _convert, reads=(_CONFIG,))
