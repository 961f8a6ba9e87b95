"""How much the engine may put into one batch, and keep between batches."""

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineLimits:
    """Bounds of one batch and of what is kept between batches.

    `batch_tokens` counts padding; `gradient_batch_tokens` does for rows with gradients, whose every activation is kept
    until the backward pass. `past_bytes` are for the keys and values of continuations under way: one that finds no room
    waits for others of its job, or runs all its positions at every step. Activations that were read of unchanged runs
    are kept in a fourth of `base_run_bytes`, besides. `threads` is torch's intra-op thread count.
    """

    batch_tokens: int = 768
    gradient_batch_tokens: int = 256
    base_run_bytes: int = 512 * 2**20
    past_bytes: int = 512 * 2**20
    threads: int = 2
