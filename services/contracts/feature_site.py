"""What all methods share that take an SAE's features for parts of the model: x = Σ f_i d_i + b_dec + ε at its site."""

from collections.abc import Iterator, Sequence
from typing import Annotated

from pydantic import Field

from services.contracts.base import CatalogueId, Position
from services.contracts.errors import ErrorCode, Violation
from services.contracts.inputs import Inputs
from services.contracts.sae import SaeFacts, autoencoder_violations

TopFeatures = Annotated[int, Field(ge=1, le=1_000)]


def sae_violations(sae: SaeFacts, model: CatalogueId, pointer: str) -> Iterator[Violation]:
    """An SAE of another model, and one whose features are not parts of the site that it reads."""
    if sae.model != model:
        message = f"{sae.id} was trained on {sae.model}, not on {model}"
        yield Violation(pointer, ErrorCode.SAE_MISMATCH, message)
    yield from autoencoder_violations(sae, pointer)


def example_position_violations(positions: Sequence[int | str], inputs: Inputs, pointer: str) -> Iterator[Violation]:
    """Positions of examples: indices that every one has, and no names."""
    shortest = min(len(example.prompt.ids) for example in inputs.examples)
    for index, position in enumerate(positions):
        message = ""
        if isinstance(position, str):
            message = f"no position of an example is called {position!r}: only pairs name positions, give an index"
        elif not -shortest <= position < shortest:
            message = f"position {position} does not exist in a prompt of {shortest} tokens: 0..{shortest - 1}"
        if message:
            yield Violation(f"{pointer}/{index}", ErrorCode.UNKNOWN_POSITION, message)


def same_position_violations(
    positions: Sequence[Position], lengths: Sequence[int], pointer: str
) -> Iterator[Violation]:
    """Positions that are one and the same in a prompt of one of these lengths."""
    for length in sorted(set(lengths)):
        if len({position % length for position in positions}) < len(positions):
            message = f"two of these positions are the same one in a prompt of {length} tokens"
            yield Violation(pointer, ErrorCode.UNKNOWN_POSITION, message)
            return
