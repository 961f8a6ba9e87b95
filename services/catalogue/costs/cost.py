"""The unit of an estimate."""

from dataclasses import dataclass

FLOAT_BYTES = 4

GRADIENT_PASSES = 3
"""What a forward and a backward pass cost together, in forward passes."""


@dataclass(frozen=True)
class Cost:
    """An estimate: `token_layers` of engine work, `output_bytes` of result."""

    token_layers: int
    output_bytes: int
