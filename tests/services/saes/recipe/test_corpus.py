"""How documents become rows, and what is held out."""

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from services.saes.recipe.corpus import HELDOUT_FRACTION, RowCutter, hold_out
from services.saes.recipe.readers import Document

DOCUMENTS = [Document(f"document {i}", f"words of {i} " * (5 + i % 7)) for i in range(200)]


def test_whole_documents_are_held_out_whatever_their_order() -> None:
    train, held = hold_out(DOCUMENTS)
    assert {document.name for document in train} | {document.name for document in held} == {
        document.name for document in DOCUMENTS
    }
    assert not {document.name for document in train} & {document.name for document in held}
    assert hold_out(DOCUMENTS[::-1]) == (train, held)
    fraction = sum(len(document.text) for document in held) / sum(len(document.text) for document in DOCUMENTS)
    assert HELDOUT_FRACTION <= fraction < HELDOUT_FRACTION + 0.01


def test_rows_begin_with_bos_and_never_span_documents() -> None:
    words = {str(i): i for i in range(1, 301)}
    tokenizer = Tokenizer(WordLevel({"?": 0} | words, unk_token="?"))
    tokenizer.pre_tokenizer = Whitespace()
    low = Document("low", " ".join(str(i) for i in range(1, 101)))
    high = Document("high", " ".join(str(i) for i in range(101, 301)))
    cutter = RowCutter(tokenizer, bos=999, context=8, rng=np.random.default_rng(0))
    rows = cutter.rows([low, high], cap=1e6)
    assert rows.shape == (100 // 7 + 200 // 7, 8)
    assert (rows[:, 0] == 999).all()
    assert (np.diff(rows[:, 1:], axis=1) == 1).all(), "each row is a stretch of one document"
    assert all((row[1:] <= 100).all() or (row[1:] > 100).all() for row in rows)


def test_the_cap_counts_tokens_with_bos() -> None:
    tokenizer = Tokenizer(WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = Whitespace()
    cutter = RowCutter(tokenizer, bos=1, context=10, rng=np.random.default_rng(0))
    assert cutter.rows([Document("long", "word " * 1000)], cap=55).shape == (5, 10)
