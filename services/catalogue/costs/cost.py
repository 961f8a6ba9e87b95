"""The unit of an estimate."""

from dataclasses import dataclass

FLOAT_BYTES = 4


@dataclass(frozen=True)
class Cost:
    """An estimate: `token_layers` of engine work, `output_bytes` of result."""

    token_layers: int
    output_bytes: int
