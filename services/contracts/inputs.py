"""A job's inputs after the gateway has tokenised them: what the worker computes on.

Positions are absolute here (no negatives), answers are token ids, and everything has been checked against the model's
facts. They travel inside the job record, so that the numbers never depend on who tokenised.
"""

from typing import Literal

from services.contracts.base import Contract
from services.contracts.result import PromptTokens


class TokenizedExample(Contract):
    prompt: PromptTokens
    answer: int | None
    foil: int | None
    metric_position: int | None


class TokenizedPair(Contract):
    """Clean and corrupted prompts of equal length; `differing` are the positions at which their tokens differ."""

    clean: PromptTokens
    corrupted: PromptTokens
    answer: int | None
    foil: int | None
    metric_position: int | None
    positions: dict[str, int]
    differing: tuple[int, ...]


class Inputs(Contract):
    """`prompts`, `examples` or `pairs`, as the job's kind asks for; `references` are its further prompts."""

    prompts: tuple[PromptTokens, ...] = ()
    examples: tuple[TokenizedExample, ...] = ()
    pairs: tuple[TokenizedPair, ...] = ()
    references: tuple[PromptTokens, ...] = ()
    answers: tuple[int, ...] = ()
    foils: tuple[int, ...] = ()
    stops: tuple[int, ...] = ()
    bos: Literal["request", "sae", "tokenizer"]

    def tokens(self) -> int:
        """Tokens over all prompts: the size of the job."""
        return (
            sum(len(prompt.ids) for prompt in (*self.prompts, *self.references))
            + sum(len(example.prompt.ids) for example in self.examples)
            + sum(2 * len(pair.clean.ids) for pair in self.pairs)
        )
