"""The unit of an estimate."""

from dataclasses import dataclass

from services.contracts.model import ModelFacts

FLOAT_BYTES = 4

GRADIENT_PASSES = 3
"""What a forward and a backward pass cost together, in forward passes."""


@dataclass(frozen=True)
class Cost:
    """An estimate: `token_layers` of engine work, `output_bytes` of result."""

    token_layers: int
    output_bytes: int


def unembedding_token_layers(model: ModelFacts) -> int:
    """One residual vector through the unembedding, in token-layers: weights against those of one block."""
    block = 2 * model.d_head * (model.heads + model.kv_heads) + 3 * model.d_mlp
    return max(1, round(model.vocabulary / block))
