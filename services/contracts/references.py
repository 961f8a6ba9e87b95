"""Prompts whose activations stand in for what is ablated, and what of them is averaged."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from services.contracts.errors import ErrorCode, Violation
from services.contracts.inputs import Inputs
from services.contracts.prompt import Prompt

References = Annotated[
    tuple[Prompt, ...],
    Field(min_length=1, max_length=1_000, description="Prompts whose activations stand in for what is ablated."),
]

Over = Literal["position", "all"]
"""A mean at the same position of each reference, or over all positions of all."""


def averaged_over(over: Over | None, inputs: Inputs) -> Over:
    """What is averaged for these inputs: left open, positions where all references and examples are equally long."""
    return over or ("all" if _unlike(inputs) else "position")


def over_violations(over: Over | None, inputs: Inputs) -> Iterator[Violation]:
    """References whose positions are to be averaged and do not correspond to the examples'."""
    for index, found, expected in _unlike(inputs) if over == "position" else ():
        message = (
            f"the reference has {found} tokens and an example {expected}, so their positions do not correspond: "
            "give references as long as the examples, or average over all positions"
        )
        yield Violation(f"/method/references/{index}", ErrorCode.UNEQUAL_LENGTHS, message)


def _unlike(inputs: Inputs) -> list[tuple[int, int, int]]:
    """References that are not as long as every example: index, own length, the other."""
    lengths = {len(example.prompt.ids) for example in inputs.examples}
    return [
        (index, len(reference.ids), other)
        for index, reference in enumerate(inputs.references)
        if (other := next((length for length in lengths if length != len(reference.ids)), None)) is not None
    ]
