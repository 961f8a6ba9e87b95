"""Training a two-layer attention-only transformer until it has induction heads (Olsson et al. 2022, "In-context
Learning and Induction Heads").

1. a row is BOS and random distinct words, repeated from the start until the row is full; the period differs by row, so
   that no fixed offset helps;
2. what comes next can be told only after the first period: by finding the earlier place of this very token;
3. AdamW on the next-token loss of all positions, the learning rate warmed up and then cosine-decayed.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge.sources.native import initialize_native_model

from services.models.native import NativeConfig, NativeForCausalLM

BOS, UNKNOWN = 0, 1
FIRST_WORD = 2
"""Ids of the words run from here to the end of the vocabulary."""


@dataclass(frozen=True)
class Recipe:
    """Everything that the weights depend on."""

    config: NativeConfig = field(
        default_factory=lambda: NativeConfig(
            n_layers=2, n_heads=8, d_model=128, d_head=16, n_ctx=128, d_vocab=256, attn_only=True, bos_token_id=BOS
        )
    )
    seed: int = 0
    steps: int = 1000
    rows: int = 64
    shortest_period: int = 8
    longest_period: int = 63
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 0.1


def repeated_tokens(
    periods: Int[Tensor, " row"], length: int, vocabulary: int, generator: torch.Generator
) -> Int[Tensor, "row position"]:
    """Rows of BOS and distinct random words that begin again after each row's own period; `length` counts BOS."""
    order = torch.rand((len(periods), vocabulary - FIRST_WORD), generator=generator).argsort(dim=1) + FIRST_WORD
    words = order.gather(1, torch.arange(length - 1) % periods[:, None])
    return torch.cat([torch.full_like(words[:, :1], BOS), words], dim=1)


def train(recipe: Recipe, say: Callable[[str], None]) -> tuple[NativeForCausalLM, float]:
    """The trained model and the seconds that it took; `say` hears of the progress."""
    config = recipe.config
    generator = torch.Generator().manual_seed(recipe.seed)
    model = NativeForCausalLM(config)
    initialize_native_model(model, model.cfg, seed=recipe.seed)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, recipe))
    started = time.monotonic()
    for step in range(recipe.steps):
        periods = torch.randint(recipe.shortest_period, recipe.longest_period + 1, (recipe.rows,), generator=generator)
        tokens = repeated_tokens(periods, config.n_ctx, config.d_vocab, generator)
        losses = next_token_losses(model(tokens).logits, tokens)
        optimiser.zero_grad()
        torch.autograd.backward(losses.mean())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 100 == 0 or step == recipe.steps - 1:
            again = losses.detach()[:, -64:].mean()
            say(f"step {step}: loss {losses.mean():.3f}, of the last 64 positions {again:.3f}")
    return model.eval(), time.monotonic() - started


def next_token_losses(
    logits: Float[Tensor, "row position vocabulary"], tokens: Int[Tensor, "row position"]
) -> Float[Tensor, "row predicted"]:
    """Nats, of what each position but the last foretells."""
    return torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")


def _rate(step: int, recipe: Recipe) -> float:
    """The learning rate's factor: linear up, then half a cosine down to zero."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / (recipe.steps - recipe.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * done))
