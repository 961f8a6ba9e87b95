"""The model cut in two at an SAE's layer: what computes the activations, and what turns them into logits."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaForCausalLM


@dataclass(frozen=True)
class LowerModel:
    """A Llama-family model up to the last of `layers`, which gives the residual stream after each of them."""

    model: nn.Module
    layers: tuple[int, ...]
    d_model: int
    bos_token_id: int

    def activations(self, tokens: Int[Tensor, "row position"]) -> dict[int, Float[Tensor, "row position d_model"]]:
        """The residual stream after every layer asked for, by layer."""
        hidden = self.model(input_ids=tokens, use_cache=False, output_hidden_states=True).hidden_states
        return {layer: hidden[layer + 1] for layer in self.layers}


@dataclass(frozen=True)
class UpperModel:
    """The rest of the model after `layer`: later layers, final norm and unembedding."""

    model: nn.Module
    unembed: nn.Module

    def logits(self, resid_post: Float[Tensor, "row position d_model"]) -> Float[Tensor, "row position vocab"]:
        """Logits when the residual stream after the layer is the one given."""
        logits: Tensor = self.unembed(self.model(inputs_embeds=resid_post, use_cache=False).last_hidden_state)
        return logits


@dataclass(frozen=True)
class SplitModel:
    """The two halves of a model around one layer."""

    lower: LowerModel
    upper: UpperModel
    layer: int

    def activations(self, tokens: Int[Tensor, "row position"]) -> Float[Tensor, "row position d_model"]:
        """The residual stream after the layer."""
        return self.lower.activations(tokens)[self.layer]

    def logits(self, resid_post: Float[Tensor, "row position d_model"]) -> Float[Tensor, "row position vocab"]:
        """Logits when the residual stream after the layer is the one given."""
        return self.upper.logits(resid_post)


def split_model(model_dir: Path, layer: int) -> SplitModel:
    """Loads a prepared folder and cuts it after `layer`; only the Llama family can be cut so simply."""
    return SplitModel(lower_model(model_dir, [layer]), upper_model(model_dir, layer), layer)


def lower_model(model_dir: Path, layers: Sequence[int]) -> LowerModel:
    """Loads a prepared folder in float32 and drops what follows the last of `layers`."""
    whole = _whole(model_dir)
    whole.model.layers = whole.model.layers[: max(layers) + 1]
    whole.model.norm = nn.Identity()
    whole.model.config.num_hidden_layers = len(whole.model.layers)
    return LowerModel(whole.model, tuple(layers), whole.config.hidden_size, whole.config.bos_token_id)


def upper_model(model_dir: Path, layer: int) -> UpperModel:
    """Loads a prepared folder in float32 and drops the layers up to `layer`."""
    whole = _whole(model_dir)
    whole.model.layers = whole.model.layers[layer + 1 :]
    whole.model.config.num_hidden_layers = len(whole.model.layers)
    return UpperModel(whole.model, whole.lm_head)


def _whole(model_dir: Path) -> LlamaForCausalLM:
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, local_files_only=True)
    if not isinstance(model, LlamaForCausalLM):
        raise TypeError(f"the recipe handles the Llama family, this is {type(model).__name__}")
    return model.eval()
