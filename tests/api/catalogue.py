"""A tiny catalogue on disk: two models' tokenizers and facts, one SAE's. No weights: the gateway needs none."""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from services.contracts.model import ModelFacts, SiteFacts
from services.contracts.sae import SaeFacts
from services.contracts.site import SiteName

MODEL = "tiny-bpe"
CHAT_MODEL = "tiny-words"
SAE = "tiny-bpe-l1"
LAYERS = 3
HEADS = 4
FEATURES = 16
CONTEXT = 64

_CORPUS = (
    "When John and Mary went to the shops, John gave the bag to Mary.",
    "When Mary and John went to the store, Mary gave the drink to John.",
)
_WORDS = ("[UNK]", "<s>", "the", "cat", "sat", "on", "mat", "user", "assistant", ":")
_TEMPLATE = "{% for message in messages %}{{ message.role }} : {{ message.content }} {% endfor %}assistant :"


def write_catalogue(home: Path) -> None:
    """Fill `home` as preparing models and SAEs would."""
    _write_model(home, MODEL, _byte_level_bpe(), bos_token_id=None, chat_template=None)
    _write_model(home, CHAT_MODEL, _word_level(), bos_token_id=1, chat_template=_TEMPLATE)
    facts = SaeFacts(
        id=SAE,
        model=MODEL,
        architecture="topk",
        site=SiteName.RESID_POST,
        layer=1,
        d_model=8,
        features=FEATURES,
        k=4,
        bos=False,
        norm_threshold=None,
        sha256="2" * 64,
        card={"explained_variance": 0.9},
    )
    folder = home / "saes" / SAE
    folder.mkdir(parents=True)
    (folder / "facts.json").write_text(facts.model_dump_json(), encoding="utf-8")


def _byte_level_bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return tokenizer


def _word_level() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(_WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def _write_model(
    home: Path, model_id: str, tokenizer: Tokenizer, *, bos_token_id: int | None, chat_template: str | None
) -> None:
    folder = home / "models" / model_id
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>"} if bos_token_id is not None else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    if chat_template is not None:
        (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    facts = ModelFacts(
        id=model_id,
        name=model_id,
        family="llama",
        revision="1",
        source="folder",
        weights_sha256="0" * 64,
        tokenizer_sha256="1" * 64,
        layers=LAYERS,
        heads=HEADS,
        kv_heads=HEADS,
        d_model=8,
        d_head=2,
        d_mlp=16,
        vocabulary=tokenizer.get_vocab_size(),
        context=CONTEXT,
        bos_token_id=bos_token_id,
        prepends_bos=bos_token_id is not None,
        has_chat_template=chat_template is not None,
        parallel_blocks=False,
        post_norms=False,
        logit_soft_cap=None,
        sites=tuple(_site(name) for name in SiteName),
        weight_bytes=1,
        token_layers_per_second=1_000.0,
    )
    (folder / "facts.json").write_text(facts.model_dump_json(), encoding="utf-8")


def _site(name: SiteName) -> SiteFacts:
    writable = name is not SiteName.MLP_OUT
    reason = None if writable else "its MLP writes nothing of its own; use resid_post"
    return SiteFacts(name=name, readable=True, writable=writable, reason=reason)
