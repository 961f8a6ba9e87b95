"""The model cut in two at the SAE's layer: what computes the activations, and what turns them into logits."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaForCausalLM


@dataclass(frozen=True)
class SplitModel:
    """A Llama-family model whose layers 0..layer are `head` and the rest, final norm and unembedding `tail`."""

    head: nn.Module
    tail: nn.Module
    unembed: nn.Module
    d_model: int
    bos_token_id: int

    def activations(self, tokens: Int[Tensor, "row position"]) -> Float[Tensor, "row position d_model"]:
        """The residual stream after layer `layer`."""
        hidden: Tensor = self.head(input_ids=tokens, use_cache=False).last_hidden_state
        return hidden

    def logits(self, resid_post: Float[Tensor, "row position d_model"]) -> Float[Tensor, "row position vocab"]:
        """Logits when the residual stream after layer `layer` is the one given."""
        logits: Tensor = self.unembed(self.tail(inputs_embeds=resid_post, use_cache=False).last_hidden_state)
        return logits


def split_model(model_dir: Path, layer: int) -> SplitModel:
    """Loads a prepared folder in float32 and cuts it after `layer`; only the Llama family can be cut so simply."""
    lower = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, local_files_only=True)
    if not isinstance(lower, LlamaForCausalLM):
        raise TypeError(f"the recipe handles the Llama family, this is {type(lower).__name__}")
    upper = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, local_files_only=True)
    lower.model.layers = lower.model.layers[: layer + 1]
    lower.model.norm = nn.Identity()
    upper.model.layers = upper.model.layers[layer + 1 :]
    for model in (lower, upper):
        model.config.num_hidden_layers = len(model.model.layers)
        model.eval()
    return SplitModel(lower.model, upper.model, upper.lm_head, lower.config.hidden_size, lower.config.bos_token_id)
