"""What all methods share that take an SAE's features for parts of the model: x = Σ f_i d_i + b_dec + ε at its site."""

from collections.abc import Iterator, Sequence
from typing import Annotated

from pydantic import Field

from services.contracts.base import Position
from services.contracts.errors import ErrorCode, Violation
from services.contracts.inputs import Inputs
from services.contracts.sae import SaeFacts

TopFeatures = Annotated[int, Field(ge=1, le=1_000)]


def sae_violations(sae: SaeFacts, pointer: str) -> Iterator[Violation]:
    """An SAE whose features do not add up to the activations that it reads: no sum of features gives x."""
    message = ""
    if sae.output is not None:
        message = (
            f"{sae.id} is a transcoder: it reads {sae.site} of layer {sae.layer} and writes {sae.output.site} of layer "
            f"{sae.output.layer}, so its features are no parts of what it reads; ask a `features` job for them, or "
            "take an SAE"
        )
    elif sae.scales_tokens:
        message = (
            f"{sae.id} scales each token by its own size ({sae.normalize_activations}): its directions are not in the "
            "activations' units, so its features can be read but not written"
        )
    if message:
        yield Violation(pointer, ErrorCode.SAE_MISMATCH, message)


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
