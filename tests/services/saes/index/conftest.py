"""A model that is a table of vectors, SAEs on it and hand-made documents: all that an index needs, without a model."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer
from torch import Tensor

from services.catalogue.tokenizer import Tokenizer
from services.saes.index.build import build_indexes
from services.saes.index.corpus import IndexCorpus, read_corpus
from services.saes.sae import Relu, Sae, TopK

D_MODEL, D_SAE, K = 8, 48, 3
WORDS = ("Paris", " Rome", " and", " the", " river", " runs", " to", " London", ".", " A", " bridge", " over", "\n")


@dataclass
class TableRunner:
    """What an SAE reads on a token is its vector and the mean of its row's so far. `breaks_after` so many batches."""

    breaks_after: int | None = None
    batches: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.table = torch.randn(len(WORDS), D_MODEL, generator=generator)
        self.unembedding = torch.randn(D_MODEL, len(WORDS), generator=generator)

    def activations(self, rows: Sequence[Sequence[int]]) -> Sequence[Mapping[str, Tensor]]:
        if self.breaks_after is not None and len(self.batches) == self.breaks_after:
            raise KeyboardInterrupt
        self.batches.append(len(rows))
        return [{"topk": self.read(row), "relu": 2 * self.read(row)} for row in rows]

    def read(self, row: Sequence[int]) -> Tensor:
        vectors = self.table[list(row)]
        return vectors + vectors.cumsum(0) / torch.arange(1, len(row) + 1)[:, None]

    def logits(self, sae_id: str, directions: Tensor) -> Tensor:
        del sae_id
        return directions @ self.unembedding

    def token_string(self, token: int) -> str:
        return WORDS[token]


def make_saes() -> dict[str, Sae]:
    """A TopK and a ReLU SAE with thresholds that leave out about a tenth of the tokens; the last feature is dead."""
    generator = torch.Generator().manual_seed(2)
    saes = {}
    for sae_id, activation, scale in (("topk", TopK(K), 1.0), ("relu", Relu(), 2.0)):
        b_enc = torch.randn(D_SAE, generator=generator) - (0.0 if sae_id == "topk" else 8.0)
        b_enc[-1] = -1e6
        saes[sae_id] = Sae(
            W_enc=torch.randn(D_MODEL, D_SAE, generator=generator),
            b_enc=b_enc,
            W_dec=torch.randn(D_SAE, D_MODEL, generator=generator),
            b_dec=torch.randn(D_MODEL, generator=generator),
            activation=activation,
            apply_b_dec_to_input=True,
            hook_name="blocks.0.hook_resid_post",
            norm_threshold=4.3 * scale,
            sha256=sae_id,
        )
    return saes


def make_corpus(folder: Path) -> Path:
    """Sixty documents of 1 to 60 words, and one of 200 that takes two rows."""
    rng = random.Random(3)
    lengths = [*(rng.randint(1, 60) for _ in range(59)), 200]
    lines = [
        {
            "id": f"document {number}",
            "source": ("rivers", "bridges")[number % 2],
            "licence": "public domain",
            "text": "".join(rng.choice(WORDS) for _ in range(length)),
        }
        for number, length in enumerate(lengths)
    ]
    path = folder / "corpus.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def word_tokenizer(folder: Path) -> Tokenizer:
    """One token per word of WORDS."""
    words = FastTokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="."))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[A-Z][a-z]*| ?[a-z]+|\.|\n"), "isolated")
    words.decoder = decoders.Fuse()
    words.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder, None, len(WORDS))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> IndexCorpus:
    folder = tmp_path_factory.mktemp("corpus")
    return read_corpus(make_corpus(folder), word_tokenizer(folder), bos=True, limit=None, context=512)


@pytest.fixture(scope="session")
def indexes(corpus: IndexCorpus, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The indexes of both SAEs, by their ids."""
    root = tmp_path_factory.mktemp("indexes")
    outputs = {sae_id: root / sae_id / "features.sqlite" for sae_id in make_saes()}
    build_indexes(make_saes(), corpus, TableRunner(), outputs=outputs, work=root / "work", tell=lambda _: None)
    return outputs
