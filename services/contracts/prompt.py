"""What a model is asked to read: prompts, examples with an answer, clean and corrupted pairs."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, FailFast, Field, Tag
from typing_extensions import TypeAliasType

from services.contracts.base import BLANK, Position, Request, TokenId

MAX_PROMPT_CHARACTERS = 100_000
MAX_PROMPT_TOKENS = 32_768

Text = Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_CHARACTERS)]


class TokensPrompt(Request):
    """A prompt given as token ids, taken as they are: nothing is prepended."""

    type: Literal["tokens"]
    tokens: Annotated[tuple[TokenId, ...], Field(min_length=1, max_length=MAX_PROMPT_TOKENS), FailFast()]


class Message(Request):
    role: Literal["system", "user", "assistant"]
    content: Annotated[str, Field(max_length=MAX_PROMPT_CHARACTERS)]


class MessagesPrompt(Request):
    """A conversation, rendered with the model's own chat template up to where the assistant speaks next."""

    type: Literal["messages"]
    messages: Annotated[tuple[Message, ...], Field(min_length=1, max_length=64)]


PromptObject = Annotated[TokensPrompt | MessagesPrompt, Field(discriminator="type")]


def _prompt_form(value: Any) -> str:
    return "text" if isinstance(value, str) else "object"


Prompt = TypeAliasType(
    "Prompt",
    Annotated[
        Annotated[Text, Tag("text")] | Annotated[PromptObject, Tag("object")],
        Discriminator(_prompt_form),
    ],
)
"""A string, or an object tagged by `type`."""


def _answer_form(value: Any) -> str:
    return "text" if isinstance(value, str) else "token"


AnswerText = Annotated[str, Field(min_length=1, max_length=200)]

Answer = TypeAliasType(
    "Answer",
    Annotated[
        Annotated[AnswerText, Tag("text")] | Annotated[TokenId, Tag("token")],
        Discriminator(_answer_form),
    ],
)
"""One token of the vocabulary: as the text that continues the prompt (" Mary"), or as its id."""

PositionName = Annotated[str, Field(min_length=1, max_length=64, pattern=f"^[^{BLANK}]+$")]


class Example(Request):
    """A prompt and what is asked of its continuation."""

    prompt: Prompt
    answer: Answer | None = None
    foil: Answer | None = None


class Pair(Request):
    """A clean and a corrupted prompt of equal token length.

    `positions` names positions (`{"S2": 9}`), so that pairs of different lengths can be averaged where they correspond.
    """

    clean: Prompt
    corrupted: Prompt
    answer: Answer | None = None
    foil: Answer | None = None
    positions: Annotated[dict[PositionName, Position], Field(max_length=64)] = {}
