"""From a prepared folder of the model store to a model in memory.

1. The weights file must have the sha256 that the model's facts state.
2. transformers builds the model from the folder alone: no network, no remote code, safetensors only, eager attention;
   a native model is built by TransformerLens instead.
3. TransformerLens' bridge wraps it, which gives every activation its hook point. Weights stay as they are: unfolded.

The bridge gets no tokenizer: lensd tokenises by itself, by the BOS rule of the job.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from services.contracts.errors import ErrorCode, JobFailed
from services.contracts.model import ModelFacts
from services.models.config_file import first_line, transformers_config
from services.models.native import ARCHITECTURE, NativeConfig, build_native, is_native, read_native_config

WEIGHTS = "model.safetensors"


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model in memory. Only the engine's thread may run it: the bridge's hooks are global mutable state.

    Prompts of more than `short_context` tokens get other rotary angles from their first token on (LongRoPE); None where
    all lengths are alike. `attachments` is for what users of the model keep exactly as long as the model.
    """

    facts: ModelFacts
    bridge: TransformerBridge
    device: torch.device
    dtype: torch.dtype
    nbytes: int
    short_context: int | None
    attachments: dict[str, Any] = field(default_factory=dict)

    def is_long(self, tokens: int) -> bool:
        """Whether a prompt of so many tokens is beyond the short context: the two kinds never share a batch."""
        return self.short_context is not None and tokens > self.short_context


def load_model(folder: Path, facts: ModelFacts, *, device: torch.device, dtype: torch.dtype) -> LoadedModel:
    """Load the model that `folder` holds.

    Raises:
        JobFailed: `model_unavailable` when the weights are missing, damaged, or not the ones that were prepared, and
            when config.json cannot be read.
    """
    _verify_weights(folder / WEIGHTS, facts)
    config = read_config(folder)
    try:
        module, described = _built(folder, config, dtype)
    except SafetensorError as error:
        message = f"the weights of {facts.id} are not valid safetensors: {first_line(error)}"
        raise JobFailed(ErrorCode.MODEL_UNAVAILABLE, message) from error
    module.to(device).eval().requires_grad_(False)
    nbytes = sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
    bridge = build_bridge_from_module(module, **described, dtype=dtype, device=device)
    bridge.eval().requires_grad_(False)
    return LoadedModel(facts, bridge, device, dtype, nbytes, short_context=_short_context(config))


def read_config(folder: Path) -> Any:
    """The folder's configuration: transformers' own, or a NativeConfig, which answers by the same names.

    Raises JobFailed (`model_unavailable`) for a config.json that cannot be read.
    """
    if is_native(folder):
        return read_native_config(folder)
    return transformers_config(folder)


def _built(folder: Path, config: Any, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:
    """The module with its weights, and what the bridge is told of it."""
    if isinstance(config, NativeConfig):
        module = build_native(config, folder / WEIGHTS, dtype=dtype)
        return module, {"architecture": ARCHITECTURE, "tl_config": module.cfg}
    (architecture,) = config.architectures
    return _built_by_transformers(folder, config, dtype), {"architecture": architecture, "hf_config": config}


def _built_by_transformers(folder: Path, config: Any, dtype: torch.dtype) -> Any:
    transformers_logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(
        folder,
        config=config,
        dtype=dtype,
        attn_implementation="eager",
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
    )


def _short_context(config: Any) -> int | None:
    """The length at which LongRoPE changes its angles; families may have rotary parameters per kind of layer."""
    rotary = getattr(config, "rope_parameters", None) or {}
    kinds = [rotary, *(value for value in rotary.values() if isinstance(value, dict))]
    limits = [kind["original_max_position_embeddings"] for kind in kinds if kind.get("rope_type") == "longrope"]
    return min(limits, default=None)


def _verify_weights(weights: Path, facts: ModelFacts) -> None:
    if not weights.is_file():
        raise JobFailed(ErrorCode.MODEL_UNAVAILABLE, f"the weights of {facts.id} are missing from the model store")
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != facts.weights_sha256:
        raise JobFailed(
            ErrorCode.MODEL_UNAVAILABLE,
            f"the weights of {facts.id} are not the ones that were prepared: prepare the model again",
        )
