"""A model whose circuit is known because it was written into its weights: induction, as Elhage et al. 2021 describe it.

A GPT-2 of three layers and four heads. Its residual stream is a sum of orthonormal directions, all of mean zero:

- `constant`: one direction, large and always there (in the position embedding). It dominates the scale of every
  LayerNorm, so that each is the identity to about 1e-4;
- `token[t]`: written by the token embedding, for every token but BOS, which writes `beginning` instead;
- `position[i]`: written by the position embedding;
- `previous[t]`: written by head 0.1, which attends to the position before and copies its token there;
- `answer[t]`: written by head 1.2, the only direction that the unembedding reads;
- `idle`: written by all other heads and all MLPs, which read everything and have random weights.

Head 1.2 looks for positions whose `previous` is its own token, and copies their token to `answer`: after … A B … A it
says B. Where nothing matches it attends to BOS, whose value is zero. Its softmax is soft, so that gradients can pass.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers.models import gpt2

from services.catalogue.operator import FolderSource, ModelEntry, weights_sha256
from services.contracts.model import ModelFacts
from services.models.prepare import prepare_model

PREVIOUS_TOKEN = (0, 1)
INDUCTION = (1, 2)
"""(layer, head) of the circuit's two heads."""

LAYERS, HEADS, D_MODEL, D_HEAD, CONTEXT = 3, 4, 256, 64, 64
BOS = "<bos>"
WORDS = (BOS, *"abcdefghijklmnopqrstuvwxyz", "one", "two", "three", "four", "five")
VOCABULARY = len(WORDS)
SINK = VOCABULARY
"""The coordinate of the induction head's queries and keys by which BOS is attended to."""

CONSTANT = 200.0
PREVIOUS_SCORE = 40.0
MATCH_SCORE, BEGINNING_SCORE = 7.0, 3.0
LOGIT = 10.0
"""Attention scores after the division by √d_head, and the logit of a token that is attended to with weight 1."""

IDLE_SCALE = 0.3


class Directions:
    """Orthonormal directions of mean zero, [n, d_model] each: rows of a cosine transform."""

    def __init__(self) -> None:
        order, place = torch.arange(D_MODEL, dtype=torch.float64)[:, None], torch.arange(D_MODEL) + 0.5
        rows = (torch.pi / D_MODEL * order * place).cos()[1:] * (2 / D_MODEL) ** 0.5
        sizes = [1, 1, VOCABULARY, CONTEXT, VOCABULARY, VOCABULARY]
        parts = torch.split(rows, [*sizes, len(rows) - sum(sizes)])
        self.constant, self.beginning, self.token, self.position, self.previous, self.answer, self.idle = parts


def build_hand_built(folder: Path) -> Path:
    """Write the model and a tokenizer of whole words into `folder` as Hugging Face would, and return the folder."""
    config = gpt2.GPT2Config(
        n_embd=D_MODEL,
        n_layer=LAYERS,
        n_head=HEADS,
        n_inner=32,
        n_positions=CONTEXT,
        vocab_size=VOCABULARY,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=False,
    )
    model = gpt2.GPT2LMHeadModel(config)
    directions = Directions()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        _write_embeddings(model, directions)
        _write_idle_parts(model, directions, torch.Generator().manual_seed(0))
        _write_head(model, PREVIOUS_TOKEN, _previous_token_head(directions))
        _write_head(model, INDUCTION, _induction_head(directions))
    model.save_pretrained(folder)
    _write_tokenizer(folder)
    return folder


def prepare_hand_built(root: Path, home: Path) -> ModelFacts:
    """The model in the store under `home`, called "hand-built"."""
    folder = build_hand_built(root / "hand-built")
    source = FolderSource(type="folder", path="hand-built", sha256=weights_sha256([folder / "model.safetensors"]))
    return prepare_model(ModelEntry(id="hand-built", name="hand-built", revision="1", source=source), root, home)


def _write_embeddings(model: gpt2.GPT2LMHeadModel, directions: Directions) -> None:
    body = model.transformer
    body.wte.weight.copy_(directions.token)
    body.wte.weight[0] = directions.beginning[0]
    body.wpe.weight.copy_(directions.position + CONSTANT * directions.constant)
    model.lm_head.weight.copy_(LOGIT * directions.answer)
    for norm in (body.ln_f, *(norm for block in body.h for norm in (block.ln_1, block.ln_2))):
        norm.weight.fill_(CONSTANT / D_MODEL**0.5)


def _write_idle_parts(model: gpt2.GPT2LMHeadModel, directions: Directions, generator: torch.Generator) -> None:
    """Random attention and MLPs, which read the residual stream and write only into `idle`."""

    def noise(*shape: int) -> Tensor:
        return IDLE_SCALE * torch.randn(shape, generator=generator, dtype=torch.float64)

    reads = torch.cat([directions.token, directions.position, directions.previous, directions.idle])
    for block in model.transformer.h:
        block.attn.c_attn.weight.copy_(reads.T @ noise(len(reads), 3 * D_MODEL))
        block.attn.c_attn.bias.copy_(noise(3 * D_MODEL))
        block.attn.c_proj.weight.copy_(noise(D_MODEL, len(directions.idle)) @ directions.idle / 16)
        block.mlp.c_fc.weight.copy_(reads.T @ noise(len(reads), 32))
        block.mlp.c_fc.bias.copy_(noise(32))
        block.mlp.c_proj.weight.copy_(noise(32, len(directions.idle)) @ directions.idle / 16)


@dataclass(frozen=True)
class _Head:
    """What a head's queries and keys read, between which directions its values move, its score where both are equal."""

    query: Float[Tensor, "d_head d_model"]
    key: Float[Tensor, "d_head d_model"]
    source: Float[Tensor, "token d_model"]
    destination: Float[Tensor, "token d_model"]
    score: float


def _previous_token_head(directions: Directions) -> _Head:
    """Position i asks for position i − 1; what is found is moved from `token` to `previous`."""
    query = torch.zeros(D_HEAD, D_MODEL, dtype=torch.float64)
    query[: CONTEXT - 1] = directions.position[1:]
    return _Head(query, directions.position, directions.token, directions.previous, PREVIOUS_SCORE)


def _induction_head(directions: Directions) -> _Head:
    """Token t asks for positions whose `previous` is t; everyone asks less strongly for BOS, by a bias of the query."""
    query, key = torch.zeros(2, D_HEAD, D_MODEL, dtype=torch.float64)
    query[:VOCABULARY], key[:VOCABULARY] = directions.token, directions.previous
    key[SINK] = BEGINNING_SCORE / MATCH_SCORE * directions.beginning
    return _Head(query, key, directions.token, directions.answer, MATCH_SCORE)


def _write_head(model: gpt2.GPT2LMHeadModel, place: tuple[int, int], head: _Head) -> None:
    layer, index = place
    attention = model.transformer.h[layer].attn
    columns = slice(index * D_HEAD, (index + 1) * D_HEAD)
    value, output = torch.zeros(2, D_HEAD, D_MODEL, dtype=torch.float64)
    value[1:VOCABULARY], output[1:VOCABULARY] = head.source[1:], head.destination[1:]
    query = head.score * D_HEAD**0.5 * head.query
    for part, rows in enumerate((query, head.key, value)):
        shifted = slice(part * D_MODEL + columns.start, part * D_MODEL + columns.stop)
        attention.c_attn.weight[:, shifted] = rows.T.float()
        attention.c_attn.bias[shifted] = 0.0
    attention.c_proj.weight[columns] = output.float()
    if place == INDUCTION:
        attention.c_attn.bias[columns.start + SINK] = head.score * D_HEAD**0.5


def _write_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token=BOS))
    tokenizer.add_special_tokens([BOS])
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "model_max_length": CONTEXT}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
