"""Tiny random-weight models of the families lensd serves, each saved as a local Hugging Face folder.

Sizes are chosen so that nothing coincides by accident: grouped queries where the family has them, a head width that is
not d_model / heads where it may differ, sliding windows shorter than the test prompts, every multiplier and cap set.
Weights are larger than at initialisation, norms and biases random too, so that every term of the forward pass matters.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformer_lens.model_bridge.sources.native import initialize_native_model
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.models import (
    gemma2,
    gemma3,
    gpt2,
    gpt_neox,
    gptj,
    granite,
    llama,
    mistral,
    olmo,
    olmo2,
    opt,
    phi,
    phi3,
    qwen2,
    qwen3,
)

from services.models.native import NativeConfig, NativeForCausalLM

LAYERS = 3
HEADS = 4
D_MODEL = 32
CONTEXT = 128
VOCABULARY = 320
WINDOW = 5
SHORT_CONTEXT = 8
BOS, EOS, PAD = "<bos>", "<eos>", "<pad>"

BOS_FAMILIES = ("gemma2", "gemma3_text", "llama", "mistral")
"""Families whose tokenizer prepends BOS by its own rule."""

_CORPUS = (
    "When John and Mary went to the shops, John gave the bag to Mary.",
    "When Mary and John went to the store, Mary gave the drink to John.",
    "The Eiffel Tower is in Paris and the Colosseum is in Rome.",
)

_SPECIAL = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
_MODERN: Mapping[str, Any] = {
    "hidden_size": D_MODEL,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": CONTEXT,
    "vocab_size": VOCABULARY,
    "tie_word_embeddings": False,
    **_SPECIAL,
}
_GROUPED: Mapping[str, Any] = {**_MODERN, "num_key_value_heads": 2}
_GPT: Mapping[str, Any] = {
    "n_embd": D_MODEL,
    "n_layer": LAYERS,
    "n_head": HEADS,
    "n_positions": CONTEXT,
    "vocab_size": VOCABULARY,
    **_SPECIAL,
}

_CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "gpt2": lambda: gpt2.GPT2Config(**_GPT, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0),
    "gptj": lambda: gptj.GPTJConfig(**_GPT, rotary_dim=4, tie_word_embeddings=False),
    "gpt_neox": lambda: gpt_neox.GPTNeoXConfig(**_MODERN, use_parallel_residual=True),
    "llama": lambda: llama.LlamaConfig(**_GROUPED, head_dim=12, attention_bias=True),
    "mistral": lambda: mistral.MistralConfig(**_GROUPED, head_dim=12, sliding_window=WINDOW),
    "qwen2": lambda: qwen2.Qwen2Config(**_GROUPED),
    "qwen3": lambda: qwen3.Qwen3Config(**_GROUPED, head_dim=12),
    "gemma2": lambda: gemma2.Gemma2Config(
        **{**_GROUPED, "tie_word_embeddings": True},
        head_dim=12,
        sliding_window=WINDOW,
        query_pre_attn_scalar=10,
        attn_logit_softcapping=5.0,
        final_logit_softcapping=8.0,
    ),
    "gemma3_text": lambda: gemma3.Gemma3TextConfig(
        **{**_GROUPED, "tie_word_embeddings": True},
        head_dim=12,
        sliding_window=WINDOW,
        query_pre_attn_scalar=10,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "phi": lambda: phi.PhiConfig(**_MODERN, partial_rotary_factor=0.5),
    "phi3": lambda: phi3.Phi3Config(**_GROUPED),
    "phi3_longrope": lambda: phi3.Phi3Config(
        **_GROUPED,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10_000.0,
            "short_factor": [1.0] * 4,
            "long_factor": [3.0] * 4,
            "original_max_position_embeddings": SHORT_CONTEXT,
        },
        original_max_position_embeddings=SHORT_CONTEXT,
    ),
    "olmo": lambda: olmo.OlmoConfig(**_GROUPED, clip_qkv=3.0),
    "olmo2": lambda: olmo2.Olmo2Config(**_GROUPED),
    "opt": lambda: opt.OPTConfig(
        hidden_size=D_MODEL,
        ffn_dim=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=CONTEXT,
        vocab_size=VOCABULARY,
        word_embed_proj_dim=D_MODEL,
        dropout=0.0,
        **_SPECIAL,
    ),
    "granite": lambda: granite.GraniteConfig(
        **_GROUPED,
        embedding_multiplier=3.0,
        logits_scaling=4.0,
        residual_multiplier=0.5,
        attention_multiplier=0.2,
    ),
}

FAMILIES = tuple(_CONFIGS)

_NATIVE: Mapping[str, Any] = {
    "n_layers": LAYERS,
    "n_heads": HEADS,
    "d_model": D_MODEL,
    "d_head": 12,
    "n_ctx": CONTEXT,
    "d_vocab": VOCABULARY,
    "bos_token_id": 0,
}
NATIVES: Mapping[str, NativeConfig] = {
    "native_attention": NativeConfig(**_NATIVE, attn_only=True),
    "native_rotary": NativeConfig(
        **_NATIVE, d_mlp=48, act_fn="gelu_new", normalization_type="RMS", positional_embedding_type="rotary"
    ),
}
"""Models of TransformerLens' own architecture: one of attention alone, and one with all that it may have instead."""


def build_family(name: str, folder: Path, *, seed: int = 0) -> Path:
    """Write a tiny model of family `name` with its tokenizer into `folder`, and return the folder."""
    if name in NATIVES:
        return _build_native(NATIVES[name], folder, seed)
    config = _CONFIGS[name]()
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    _roughen(model, torch.Generator().manual_seed(seed))
    model.save_pretrained(folder)
    _write_tokenizer(folder, prepends_bos=name in BOS_FAMILIES)
    return folder


def _build_native(config: NativeConfig, folder: Path, seed: int) -> Path:
    model = NativeForCausalLM(config)
    initialize_native_model(model, model.cfg)  # biases zero, gains one
    _roughen(model, torch.Generator().manual_seed(seed))
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(config.model_dump_json(exclude_none=True), encoding="utf-8")
    _write_tokenizer(folder, prepends_bos=True)
    return folder


def _roughen(model: torch.nn.Module, generator: torch.Generator) -> None:
    """Replace the weights by ones under which every part of the model has a visible effect."""
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.add_(0.2 * noise)
            else:
                parameter.copy_(noise * 1.2 / parameter.shape[-1] ** 0.5)


def _write_tokenizer(folder: Path, *, prepends_bos: bool) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        _CORPUS,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[BOS, EOS, PAD],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    if prepends_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "model_max_length": CONTEXT,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
