"""`generation`: how a model goes on from a prompt, by itself and steered."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from services.contracts.base import CatalogueId, Contract, Position, Request
from services.contracts.errors import ErrorCode, Violation
from services.contracts.feature_site import sae_violations
from services.contracts.inputs import Inputs
from services.contracts.model import ModelFacts
from services.contracts.prompt import Answer, Prompt
from services.contracts.result import PromptTokens, Result
from services.contracts.sae import SaeFacts
from services.contracts.spec import Asked, Spec
from services.contracts.steering import AppliedSteering, FeatureSteering, Steering, Unit, overflows

MAX_NEW_TOKENS = 32_768
"""Of one job, over all its texts."""


class Greedy(Request):
    """The likeliest token."""

    type: Literal["greedy"]


class Sampled(Request):
    """A token drawn from softmax(logits / temperature), cut to the `top_k` likeliest tokens and then to the fewest of
    those that hold `top_p` of what is left.

    A draw depends on the seed, the number of the new token and the logits, never on what else runs: all texts of a job
    draw with the same numbers, so that what differs between strengths is the steering.
    """

    type: Literal["sampled"]
    seed: Annotated[int, Field(ge=0, le=2**53)] = 0
    temperature: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    top_k: Annotated[int | None, Field(ge=1, le=10_000_000)] = None
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0


Sampling = Annotated[Greedy | Sampled, Field(discriminator="type")]


class GenerationSpec(Spec):
    """A text per prompt without steering, and one per prompt and strength with it.

    A strength multiplies the `value` of everything that is added or clamped to; what is ablated or projected out is so
    at every strength. Steering is done in its order, features all together where the first of them stands. `unit` of
    amounts: `activation`, the feature's own, multiples of the direction as given, or, to clamp a direction, the
    activation's coordinate along it; `mean_norm`, so that what is added (v d of a feature that is clamped, v d̂ of a
    direction) is as long as that many activations at its site are on average.
    """

    kind: Literal["generation"]
    prompts: Annotated[tuple[Prompt, ...], Field(min_length=1, max_length=64)]
    max_new_tokens: Annotated[int, Field(ge=1, le=1_024)] = 32
    sampling: Sampling = Greedy(type="greedy")
    stop: Annotated[
        tuple[Answer, ...] | None,
        Field(max_length=16, description="Tokens that end a text, its last; null is the tokenizer's end of sequence."),
    ] = None
    steering: Annotated[tuple[Steering, ...], Field(max_length=64)] = ()
    strengths: Annotated[tuple[float, ...], Field(min_length=1, max_length=16)] = (1.0,)
    unit: Unit = "activation"
    from_position: Annotated[
        Position,
        Field(description="The first position that is steered; all later ones are too. −1 is the prompt's last token."),
    ] = 1
    log_probs: Annotated[
        bool, Field(description="Score every text under the model that did not write it, too: one run more each.")
    ] = True

    def asked(self) -> Asked:
        return Asked(prompts=self.prompts, stops=self.stop or ())

    def features(self) -> Iterator[tuple[int, FeatureSteering]]:
        """What is steered by features, with its place."""
        for index, steering in enumerate(self.steering):
            if isinstance(steering, FeatureSteering):
                yield index, steering

    def steered_strengths(self) -> tuple[float, ...]:
        """Those that there are steered texts of."""
        return self.strengths if self.steering else ()

    def sae_id(self) -> CatalogueId | None:
        return next((feature.sae for _, feature in self.features()), None)

    def sae_pointer(self) -> str:
        return next((f"/steering/{index}/sae" for index, _ in self.features()), "/steering")

    def writes_features(self) -> bool:
        return self.sae_id() is not None

    def sae_violations(self, sae: SaeFacts) -> Iterator[Violation]:
        """An SAE whose features are no parts of the activations, a second SAE, features that it lacks."""
        yield from sae_violations(sae, self.sae_pointer())
        for index, feature in self.features():
            if feature.sae != sae.id:
                message = f"one job steers by features of one SAE: {sae.id} came first"
                yield Violation(f"/steering/{index}/sae", ErrorCode.SAE_MISMATCH, message)
            else:
                yield from feature.sae_violations(sae, f"/steering/{index}")

    def violations(self, facts: ModelFacts) -> Iterator[Violation]:
        """What the model lacks, strengths that overflow or change nothing, and more text than one job may have."""
        for index, steering in enumerate(self.steering):
            yield from steering.violations(facts, f"/steering/{index}")
        yield from self._strength_violations()
        tokens = len(self.prompts) * (1 + len(self.steered_strengths())) * self.max_new_tokens
        if tokens > MAX_NEW_TOKENS:
            message = f"the texts have {tokens} new tokens together, and may have {MAX_NEW_TOKENS}: send several jobs"
            yield Violation("/max_new_tokens", ErrorCode.JOB_TOO_LARGE, message)

    def _strength_violations(self) -> Iterator[Violation]:
        if len(set(self.strengths)) < len(self.strengths):
            yield Violation("/strengths", ErrorCode.INVALID_REQUEST, "two of these strengths are the same")
        if self.strengths != (1.0,) and not any(steering.scaled for steering in self.steering):
            message = "nothing here is added or clamped to, so there is nothing to multiply: leave `strengths` out"
            yield Violation("/strengths", ErrorCode.INVALID_REQUEST, message)
        for place, strength in enumerate(self.strengths):
            if any(overflows(steering, strength, self.unit) for steering in self.steering):
                message = f"what strength {strength:g} adds overflows in the model: steer less"
                yield Violation(f"/strengths/{place}", ErrorCode.INVALID_REQUEST, message)

    def input_violations(self, inputs: Inputs) -> Iterator[Violation]:
        """A first position that some text does not have, a mean norm of nothing."""
        if not self.steering:
            return
        lengths = [len(prompt.ids) for prompt in inputs.prompts]
        shortest = min(lengths)
        if not -shortest <= self.from_position < shortest + self.max_new_tokens - 1:
            message = (
                f"no position {self.from_position} is run of a prompt of {shortest} tokens and {self.max_new_tokens} "
                f"new ones: −{shortest}..{shortest + self.max_new_tokens - 2}; the last new token is never run"
            )
            yield Violation("/from_position", ErrorCode.UNKNOWN_POSITION, message)
        if self.unit == "mean_norm" and max(lengths) < 2:
            message = "the mean norm leaves position 0 out: one prompt needs a second token, or set `unit`"
            yield Violation("/unit", ErrorCode.INVALID_REQUEST, message)


FinishReason = Literal["stop", "length", "context"]


class TextScore(Contract):
    """Log probability of every token of a text given those before, in nats at temperature 1; their mean; exp(−mean)."""

    log_probs: tuple[float, ...]
    mean_log_prob: float
    perplexity: float


class GeneratedText(Contract):
    """New tokens after a prompt. `stop`: a stop token came, and is the last; `length`: all new tokens are there;
    `context`: the model reads no further.

    `unsteered` and `steered` score the text under the model by itself and under this strength; the one that did not
    write it is null without `log_probs`. A text without steering has no `steered`.
    """

    text: str
    tokens: tuple[int, ...]
    strings: tuple[str, ...]
    finish_reason: FinishReason
    unsteered: TextScore | None
    steered: TextScore | None = None


class SteeredText(GeneratedText):
    """`unsteered_text` scores the text without steering under this strength; null without `log_probs`."""

    strength: float
    unsteered_text: TextScore | None


class PromptTexts(Contract):
    """`first_position` is that from which its steered texts are steered. `over_norm`: its positions that are over the
    SAE's norm threshold in the unsteered run."""

    tokens: PromptTokens
    first_position: int
    over_norm: tuple[int, ...]
    unsteered: GeneratedText
    steered: tuple[SteeredText, ...]


class GenerationResult(Result):
    """`prompts` in the order of the specification's, their `steered` in that of its strengths."""

    kind: Literal["generation"] = "generation"
    sae: CatalogueId | None
    unit: Unit
    strengths: tuple[float, ...]
    steering: tuple[AppliedSteering, ...]
    stop: Annotated[tuple[int, ...], Field(description="Ids of the tokens that end a text.")]
    prompts: tuple[PromptTexts, ...]


class NewTokens(Contract):
    """Tokens of one text that have come since the last event; of a client that joins late, all so far.

    `strength` is null for the text without steering. They are the text's tokens from number `first` on, and take the
    place of any that a client has there.
    """

    prompt: int
    strength: float | None
    first: int
    tokens: tuple[int, ...]
    strings: tuple[str, ...]
    log_probs: Annotated[tuple[float, ...], Field(description="In the run that wrote them, nats at temperature 1.")]
