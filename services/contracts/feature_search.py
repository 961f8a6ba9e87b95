"""Search by example: which features fire on the tokens marked, and not on the others."""

from collections.abc import Iterator, Sequence
from typing import Annotated

from pydantic import Field

from services.contracts.base import Contract, Position, Request
from services.contracts.errors import ErrorCode, Violation
from services.contracts.result import PromptTokens


class Mark(Request):
    """Tokens of one prompt, or (null) of every prompt: at `positions`, or all that `text` touches where it is."""

    prompt: Annotated[int | None, Field(ge=0, le=999, description="Which of `prompts`, from 0.")] = None
    positions: Annotated[tuple[Position, ...] | None, Field(min_length=1, max_length=4_096)] = None
    text: Annotated[str | None, Field(min_length=1, max_length=1_000)] = None

    def violations(self, prompts: int, pointer: str) -> Iterator[Violation]:
        """No such prompt; positions and text both, or neither."""
        if self.prompt is not None and self.prompt >= prompts:
            message = f"there is no prompt {self.prompt}: the job has 0..{prompts - 1}"
            yield Violation(f"{pointer}/prompt", ErrorCode.INVALID_REQUEST, message)
        if self.positions is None and self.text is None:
            yield Violation(pointer, ErrorCode.INVALID_REQUEST, "nothing is marked: give `positions` or `text`")
        if self.positions is not None and self.text is not None:
            message = "`positions` and `text` are two ways to mark: give one, or two marks"
            yield Violation(f"{pointer}/text", ErrorCode.INVALID_REQUEST, message)

    def input_violations(self, prompts: Sequence[PromptTokens], pointer: str) -> Iterator[Violation]:
        """Positions that a prompt lacks, and text that is in none."""
        shortest = min(len(prompt.ids) for prompt in self._among(prompts).values())
        for index, position in enumerate(self.positions or ()):
            if not -shortest <= position < shortest:
                message = f"position {position} does not exist in a prompt of {shortest} tokens: 0..{shortest - 1}"
                yield Violation(f"{pointer}/positions/{index}", ErrorCode.UNKNOWN_POSITION, message)
        if self.text is not None and not self.found(prompts):
            where = "any prompt" if self.prompt is None else f"prompt {self.prompt}"
            message = f"{self.text!r} does not occur in {where}: spaces and capitals count"
            yield Violation(f"{pointer}/text", ErrorCode.UNKNOWN_POSITION, message)

    def found(self, prompts: Sequence[PromptTokens]) -> dict[int, frozenset[int]]:
        """The positions marked, by prompt; prompts without any are left out."""
        marked = {
            index: frozenset(
                (position % len(prompt.ids) for position in self.positions)
                if self.positions is not None
                else _touched(prompt.strings, self.text or "")
            )
            for index, prompt in self._among(prompts).items()
        }
        return {index: positions for index, positions in marked.items() if positions}

    def _among(self, prompts: Sequence[PromptTokens]) -> dict[int, PromptTokens]:
        return dict(enumerate(prompts)) if self.prompt is None else {self.prompt: prompts[self.prompt]}


def _touched(strings: Sequence[str], text: str) -> Iterator[int]:
    """Tokens that share a character with an occurrence of `text`; occurrences may overlap."""
    whole, covered = "".join(strings), set[int]()
    start = whole.find(text)
    while start >= 0:
        covered.update(range(start, start + len(text)))
        start = whole.find(text, start + 1)
    offset = 0
    for position, string in enumerate(strings):
        if not covered.isdisjoint(range(offset, offset + len(string))):
            yield position
        offset += len(string)


def marked_positions(marks: Sequence[Mark], prompts: Sequence[PromptTokens]) -> dict[int, frozenset[int]]:
    """What all marks mark together, by prompt."""
    together: dict[int, frozenset[int]] = {}
    for mark in marks:
        for index, positions in mark.found(prompts).items():
            together[index] = together.get(index, frozenset()) | positions
    return together


def search_violations(marks: Sequence[Mark], prompts: Sequence[PromptTokens]) -> Iterator[Violation]:
    """Marks that name nothing, and marks that leave no token to tell from."""
    violations = [
        violation
        for index, mark in enumerate(marks)
        for violation in mark.input_violations(prompts, f"/search/{index}")
    ]
    yield from violations
    if violations:
        return
    marked = sum(map(len, marked_positions(marks, prompts).values()))
    if marked == sum(len(prompt.ids) for prompt in prompts):
        message = "every token is marked, so there is none to tell them from: mark fewer, or add prompts"
        yield Violation("/search", ErrorCode.INVALID_REQUEST, message)


class FoundFeature(Contract):
    """One feature's firing (activation over zero) as a guess of which tokens are marked, and its activations."""

    index: int
    precision: Annotated[float, Field(description="Of the tokens on which it fires, the fraction marked.")]
    recall: Annotated[float, Field(description="Of the tokens marked, the fraction on which it fires.")]
    f1: float
    mean_marked: Annotated[float, Field(description="Mean activation over the tokens marked, zeros included.")]
    mean_other: float
    auroc: Annotated[float, Field(description="Chance that a marked token has more of it than another, ties half.")]


class MarkedTokens(Contract):
    """The tokens marked in one prompt, those over the norm threshold left out."""

    prompt: int
    positions: tuple[int, ...]


class FeatureSearch(Contract):
    """Features by F1, then AUROC. `candidates` fire on a marked token; `marked` and `others` count tokens.

    Tokens over the SAE's norm threshold are neither.
    """

    marked: int
    others: int
    candidates: int
    tokens: tuple[MarkedTokens, ...]
    features: tuple[FoundFeature, ...]
