"""`attention`: where heads look, and which of the known kinds of head each one resembles."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from services.contracts.base import Contract, Head, Layer, Request
from services.contracts.errors import ErrorCode, Violation
from services.contracts.model import ModelFacts
from services.contracts.place import head_violations, layer_violations, site_violations
from services.contracts.prompt import Prompt
from services.contracts.result import PromptTokens, Result
from services.contracts.site import SiteName
from services.contracts.spec import Asked, Spec
from services.contracts.tensor import Estimate, Tensor


class AttentionHead(Request):
    """One query head of one layer."""

    layer: Layer
    head: Head


class RandomTokens(Request):
    """Sequences of `length` different tokens drawn at random, then the same again: only the context can predict them.

    BOS comes first where the job's `bos` says so, else where the model's tokenizer prepends it; it is never drawn.
    """

    sequences: Annotated[int, Field(ge=1, le=64)] = 8
    length: Annotated[int, Field(ge=2, le=512, description="Tokens before they are repeated.")] = 25
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0


class AttentionSpec(Spec):
    """Patterns of chosen heads on `prompts`; scores of all heads, on `prompts` and on repeated random tokens."""

    kind: Literal["attention"]
    prompts: Annotated[tuple[Prompt, ...], Field(max_length=1_000)] = ()
    random_tokens: RandomTokens | None = None
    patterns: Annotated[tuple[AttentionHead, ...], Field(max_length=256)] = ()
    scores: Annotated[bool, Field(description="Whether to score every head of the model.")] = True

    def asked(self) -> Asked:
        return Asked(prompts=self.prompts)

    def begins_with_bos(self, facts: ModelFacts) -> bool:
        """Whether random sequences get a BOS token."""
        wanted = facts.prepends_bos if self.bos is None else self.bos
        return wanted and facts.bos_token_id is not None

    def violations(self, facts: ModelFacts) -> Iterator[Violation]:
        """Heads that do not exist, a model whose patterns cannot be read, sequences it cannot read, and empty jobs."""
        yield from site_violations(SiteName.PATTERN, facts, "/kind", write=False)
        for index, chosen in enumerate(self.patterns):
            yield from layer_violations((chosen.layer,), facts, f"/patterns/{index}/layer")
            yield from head_violations((chosen.head,), SiteName.PATTERN, facts, f"/patterns/{index}/head")
        yield from self._emptiness()
        if self.random_tokens is not None:
            yield from self._length_violations(self.random_tokens.length, facts)

    def _emptiness(self) -> Iterator[Violation]:
        if not self.prompts and (self.patterns or self.random_tokens is None):
            message = "there is nothing to read: give prompts, or random_tokens to score all heads on"
            yield Violation("/prompts", ErrorCode.INVALID_REQUEST, message)
        if not self.scores and self.random_tokens is not None:
            message = "random tokens serve the scores alone: leave them out, or ask for scores"
            yield Violation("/random_tokens", ErrorCode.INVALID_REQUEST, message)
        if not self.scores and not self.patterns:
            message = (
                "neither patterns nor scores are asked for: name the heads whose patterns to give, or ask for scores"
            )
            yield Violation("/patterns", ErrorCode.INVALID_REQUEST, message)

    def _length_violations(self, length: int, facts: ModelFacts) -> Iterator[Violation]:
        pointer, tokens = "/random_tokens/length", 2 * length + self.begins_with_bos(facts)
        if tokens > facts.context:
            message = f"{length} tokens and their repetition make {tokens}: {facts.id} reads at most {facts.context}"
            yield Violation(pointer, ErrorCode.PROMPT_TOO_LONG, message)
        if length >= facts.vocabulary:
            message = f"{facts.id} has {facts.vocabulary} tokens, BOS among them: ask for fewer different ones"
            yield Violation(pointer, ErrorCode.UNKNOWN_TOKEN, message)


class ReadHead(Contract):
    """A head whose patterns were taken."""

    layer: Layer
    head: Head


class HeadScores(Contract):
    """Every head against the known kinds, each score between 0 and 1, as [layer, head]; means over prompts.

    A BOS token at the start is neither a query nor counted as an earlier token. Of each prompt, the mean over:

    - `previous_token` (Elhage et al. 2021): the tokens but the first, of the attention to the token before;
    - `duplicate_token` (Wang et al. 2022): the tokens that came before, of the attention to their earlier occurrences;
    - `induction` (Olsson et al. 2022): the tokens that came before, of the attention to the tokens right after their
      earlier occurrences, itself left out; on random tokens this is, for second-half positions t, t − n + 1;
    - `copying` (Wang et al. 2022): all tokens, of 1 where the token is among the five largest logits, 0 elsewhere, when
      its residual stream after the first layer goes through the head's input norm, W_V, b_V and W_O, then through the
      final norm and unembedding: what the head would write if it attended to that token alone.

    Prompts without such a token do not count; where none has one, all cells are null.
    """

    previous_token: Estimate
    duplicate_token: Estimate
    induction: Estimate
    copying: Estimate


class PromptAttention(Contract):
    """`patterns`: [head, query, key], the heads as the result's `heads` lists them; each query's row adds up to 1
    (less where the model has attention sinks of its own)."""

    tokens: PromptTokens
    patterns: Tensor | None


class AttentionResult(Result):
    kind: Literal["attention"] = "attention"
    heads: tuple[ReadHead, ...]
    prompts: tuple[PromptAttention, ...]
    scores: HeadScores | None
    random_scores: HeadScores | None
    random_sequences: Annotated[
        tuple[tuple[int, ...], ...] | None,
        Field(description="The token ids of the random sequences, as they were read."),
    ]
