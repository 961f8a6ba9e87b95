"""Text to token ids without torch: the model's own tokenizer, its chat template in a sandbox, and the BOS rule.

lensd never leaves tokenising to the model library, whose defaults prepend BOS silently. The BOS rule of a job is the
request's, else the SAE's, else the tokenizer's own; a prompt that already starts with BOS never gets a second one, and
prompts given as tokens are taken as they are.
"""

import json
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from services.contracts.errors import ErrorCode, LensdError
from services.contracts.prompt import MAX_PROMPT_CHARACTERS, MessagesPrompt, Prompt, TokensPrompt
from services.contracts.result import PromptTokens

_RENDER_SECONDS = 1.0


class Tokenizer:
    """The tokenizer of one model, read from its folder in the store."""

    def __init__(self, folder: Path, bos_token_id: int | None, vocabulary: int) -> None:
        self._folder = folder
        self._bos_token_id = bos_token_id
        self._vocabulary = vocabulary

    @cached_property
    def _tokenizer(self) -> tokenizers.Tokenizer:
        return tokenizers.Tokenizer.from_file(str(self._folder / "tokenizer.json"))

    @cached_property
    def _config(self) -> dict[str, Any]:
        path = self._folder / "tokenizer_config.json"
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return config

    @cached_property
    def _chat_template(self) -> Template | None:
        path = self._folder / "chat_template.jinja"
        source = path.read_text(encoding="utf-8") if path.exists() else self._config.get("chat_template")
        if not isinstance(source, str):
            return None
        sandbox = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, autoescape=False)
        sandbox.globals["raise_exception"] = _raise_template_error
        return sandbox.from_string(source)

    @cached_property
    def _byte_level(self) -> bool:
        return "ByteLevel" in repr(self._tokenizer.decoder)

    @property
    def has_chat_template(self) -> bool:
        return self._chat_template is not None

    def read(self, prompt: Prompt, bos: bool) -> PromptTokens:
        """The ids of `prompt`, BOS prepended if `bos` says so; raises LensdError(INVALID_PROMPT | UNKNOWN_TOKEN)."""
        if isinstance(prompt, TokensPrompt):
            return self._echo(self._known(prompt.tokens), bos_prepended=False)
        return self.read_text(self.render(prompt), bos)

    def read_text(self, text: str, bos: bool) -> PromptTokens:
        ids = tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)
        if not ids:
            raise LensdError(ErrorCode.INVALID_PROMPT, "the prompt has no tokens: give at least one")
        prepend = bos and self._bos_token_id is not None and ids[0] != self._bos_token_id
        if prepend and self._bos_token_id is not None:
            ids = (self._bos_token_id, *ids)
        return self._echo(ids, bos_prepended=prepend)

    def render(self, prompt: str | MessagesPrompt) -> str:
        """A prompt as text: itself, or its messages through the chat template."""
        if isinstance(prompt, str):
            return prompt
        template = self._chat_template
        if template is None:
            raise LensdError(
                ErrorCode.INVALID_PROMPT, "this model has no chat template: send the prompt as text or as tokens"
            )
        messages = [message.model_dump() for message in prompt.messages]
        try:
            return _render(template, messages=messages, add_generation_prompt=True, **self._special_tokens())
        except TemplateError as error:
            raise LensdError(
                ErrorCode.INVALID_PROMPT, f"the model's chat template refuses these messages: {str(error)[:200]}"
            ) from error

    def answer(self, prompt: Prompt, tokens: PromptTokens, answer: str | int, bos: bool) -> int:
        """The one token that `answer` is after `prompt`; raises LensdError(INVALID_ANSWER | UNKNOWN_TOKEN)."""
        if isinstance(answer, int):
            return self._known((answer,))[0]
        if isinstance(prompt, TokensPrompt):
            continuation = tuple(self._tokenizer.encode(answer, add_special_tokens=False).ids)
        else:
            together = self.read_text(self.render(prompt) + answer, bos).ids
            shared = together[: len(tokens.ids)] == tokens.ids
            continuation = together[len(tokens.ids) :] if shared else ()
            if not shared:
                raise LensdError(
                    ErrorCode.INVALID_ANSWER,
                    f"{answer!r} melts into the prompt's last token when they are tokenised together: "
                    "start it where a token starts (often with a space), or give the token's id",
                )
        if len(continuation) != 1:
            pieces = [self.string(token) for token in continuation[:20]]
            raise LensdError(
                ErrorCode.INVALID_ANSWER,
                f"{answer!r} is {len(continuation)} tokens after this prompt, {pieces}: "
                "an answer is one token; give the first, or a token's id",
            )
        return continuation[0]

    def one_token(self, token: str | int) -> int:
        """The id of what is one token by itself; raises LensdError(INVALID_ANSWER | UNKNOWN_TOKEN)."""
        if isinstance(token, int):
            return self._known((token,))[0]
        ids = tuple(self._tokenizer.encode(token, add_special_tokens=False).ids)
        if len(ids) != 1:
            pieces = [self.string(piece) for piece in ids[:20]]
            message = f"{token!r} is {len(ids)} tokens, {pieces}: give one that is a single token, or a token's id"
            raise LensdError(ErrorCode.INVALID_ANSWER, message)
        return ids[0]

    @property
    def end_of_sequence(self) -> int | None:
        """The token with which the model ends what it writes, if its tokenizer names one."""
        name = self._special_tokens()["eos_token"]
        return self._tokenizer.token_to_id(name) if name else None

    def text(self, tokens: Sequence[int]) -> str:
        """What tokens read together, special ones included."""
        return self._tokenizer.decode(list(tokens), skip_special_tokens=False)

    def string(self, token: int) -> str:
        """How one token reads, its leading space kept."""
        if self._byte_level:
            return self._tokenizer.decode([token], skip_special_tokens=False)
        return (self._tokenizer.id_to_token(token) or "").replace("▁", " ")

    def _echo(self, ids: tuple[int, ...], bos_prepended: bool) -> PromptTokens:
        return PromptTokens(ids=ids, strings=tuple(self.string(token) for token in ids), bos_prepended=bos_prepended)

    def _known(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        for token in ids:
            if token >= self._vocabulary:
                raise LensdError(
                    ErrorCode.UNKNOWN_TOKEN, f"token {token} does not exist: ids run from 0 to {self._vocabulary - 1}"
                )
        return ids

    def _special_tokens(self) -> dict[str, str]:
        names = ("bos_token", "eos_token", "unk_token", "pad_token")
        values = {name: self._config.get(name) for name in names}
        return {
            name: value if isinstance(value, str) else value.get("content", "") if isinstance(value, dict) else ""
            for name, value in values.items()
        }


def _raise_template_error(message: str) -> None:
    raise TemplateError(message)


def _render(template: Template, **context: Any) -> str:
    """Render piece by piece, giving up past a size or a time: a template is the operator's, its input the client's."""
    started = time.monotonic()
    pieces: list[str] = []
    size = 0
    for piece in template.generate(**context):
        pieces.append(piece)
        size += len(piece)
        if size > MAX_PROMPT_CHARACTERS or time.monotonic() - started > _RENDER_SECONDS:
            raise TemplateError(f"rendering went past {MAX_PROMPT_CHARACTERS} characters or {_RENDER_SECONDS} s")
    return "".join(pieces)
