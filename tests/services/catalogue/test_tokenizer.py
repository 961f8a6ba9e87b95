import json
import shutil
from pathlib import Path

import pytest

from services.catalogue.catalogue import Catalogue, model_folder
from services.catalogue.tokenizer import Tokenizer
from services.contracts.errors import ErrorCode, LensdError
from services.contracts.prompt import Message, MessagesPrompt, TokensPrompt

PROMPT = "John gave the bag to"


@pytest.fixture
def tokenizer(tiny: Catalogue) -> Tokenizer:
    return tiny.tokenizer("tiny-llama")


def with_template(tiny: Catalogue, folder: Path, template: str) -> Tokenizer:
    shutil.copytree(model_folder(tiny.home, "tiny-llama"), folder, dirs_exist_ok=True)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return Tokenizer(folder, bos_token_id=0, vocabulary=320)


def hello(content: str = "hello") -> MessagesPrompt:
    return MessagesPrompt(type="messages", messages=(Message(role="user", content=content),))


def test_bos_is_prepended_exactly_when_the_rule_says_so(tokenizer: Tokenizer) -> None:
    without = tokenizer.read(PROMPT, bos=False)
    assert not without.bos_prepended
    assert 0 not in without.ids
    prepended = tokenizer.read(PROMPT, bos=True)
    assert prepended.bos_prepended
    assert prepended.ids == (0, *without.ids)


def test_token_strings_join_to_the_text(tokenizer: Tokenizer) -> None:
    assert "".join(tokenizer.read(PROMPT, bos=False).strings) == PROMPT


def test_a_prompt_of_tokens_is_taken_as_it_is(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.read(TokensPrompt(type="tokens", tokens=(5, 6)), bos=True)
    assert tokens.ids == (5, 6)
    assert not tokens.bos_prepended


def test_a_token_outside_the_vocabulary_is_refused_with_the_range(tokenizer: Tokenizer) -> None:
    with pytest.raises(LensdError, match=r"token 320 does not exist: ids run from 0 to 319") as refused:
        tokenizer.read(TokensPrompt(type="tokens", tokens=(5, 320)), bos=True)
    assert refused.value.code is ErrorCode.UNKNOWN_TOKEN


def test_an_answer_is_the_one_token_that_continues_the_prompt(tokenizer: Tokenizer) -> None:
    prompt = tokenizer.read(PROMPT, bos=True)
    answer = tokenizer.answer(PROMPT, prompt, " Mary", bos=True)
    assert tokenizer.read(f"{PROMPT} Mary", bos=True).ids == (*prompt.ids, answer)
    assert tokenizer.string(answer) == " Mary"


def test_an_answer_of_several_tokens_is_refused_with_its_pieces(tokenizer: Tokenizer) -> None:
    prompt = tokenizer.read(PROMPT, bos=False)
    with pytest.raises(LensdError, match=r"' Mary gave' is 2 tokens after this prompt, \[' Mary', ' gave'\]"):
        tokenizer.answer(PROMPT, prompt, " Mary gave", bos=False)


def test_an_answer_that_melts_into_the_prompt_is_refused(tokenizer: Tokenizer) -> None:
    prompt = tokenizer.read("John and Ma", bos=False)
    with pytest.raises(LensdError, match="melts into the prompt's last token"):
        tokenizer.answer("John and Ma", prompt, "ry", bos=False)


def test_messages_without_a_chat_template_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(LensdError, match="no chat template"):
        tokenizer.read(hello(), bos=False)


def test_a_chat_template_that_writes_bos_gets_no_second_one(tiny: Catalogue, tmp_path: Path) -> None:
    template = "{{ bos_token }}{% for message in messages %}{{ message.content }}{% endfor %}"
    tokens = with_template(tiny, tmp_path, template).read(hello(), bos=True)
    assert tokens.ids.count(0) == 1
    assert not tokens.bos_prepended


def test_a_chat_template_cannot_reach_out_of_its_sandbox(tiny: Catalogue, tmp_path: Path) -> None:
    tokenizer = with_template(tiny, tmp_path, "{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(LensdError, match="chat template refuses"):
        tokenizer.read(hello(), bos=False)


@pytest.mark.parametrize(
    "endless", ["{% for i in range(99999) %}{{ 'xxxxxxxxxx' }}{% endfor %}", "{{ raise_exception('no system role') }}"]
)
def test_a_chat_template_that_grows_or_refuses_is_an_invalid_prompt(
    tiny: Catalogue, tmp_path: Path, endless: str
) -> None:
    with pytest.raises(LensdError, match="chat template refuses") as refused:
        with_template(tiny, tmp_path, endless).read(hello(), bos=False)
    assert refused.value.code is ErrorCode.INVALID_PROMPT


def test_a_template_in_the_tokenizer_config_is_found(tiny: Catalogue, tmp_path: Path) -> None:
    shutil.copytree(model_folder(tiny.home, "tiny-llama"), tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["chat_template"] = "{{ messages[0].content }}"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    tokenizer = Tokenizer(tmp_path, bos_token_id=0, vocabulary=320)
    assert tokenizer.has_chat_template
    assert "".join(tokenizer.read(hello(" Mary"), bos=False).strings) == " Mary"
