"""The induction example's own arithmetic, and that its page says what its figures say."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.induction import DOCS, draw, losses, ranked
from examples.induction_paths import swapped_pairs
from examples.induction_report import SCRIPT, tables
from examples.page import rounded, with_tables, write_figures


def read(costs: Sequence[float]) -> Any:
    """One example of an intervention's result: BOS and words that cost so many nats, their mean as the metric."""
    return {
        "tokens": {"ids": list(range(len(costs) + 1))},
        "metric": {"unpatched": float(np.mean(costs)), "patched": 0.0},
    }


def test_the_second_halfs_loss_is_what_the_whole_text_costs_beyond_the_first() -> None:
    costs = [[5.0, 6.0, 7.0, 1.0, 0.5, 0.0], [4.0, 4.0, 4.0, 2.0, 2.0, 2.0]]
    found = losses([example for text in costs for example in (read(text[:3]), read(text))], "unpatched")
    assert found == pytest.approx(
        {"first_half": 5.0, "second_half": 1.25, "gain": 3.75, "standard_error": np.std([5.5, 2.0], ddof=1) / 2**0.5}
    )


def test_a_pair_differs_where_two_words_have_changed_places_and_nowhere_else() -> None:
    for words, pair in zip(texts := draw(40, 16, seed=3), swapped_pairs(texts), strict=True):
        clean, corrupted, at = pair["clean"].split(), pair["corrupted"].split(), pair["positions"]
        differing = [index + 1 for index, pair in enumerate(zip(clean, corrupted, strict=True)) if pair[0] != pair[1]]
        assert differing == [at["A"], at["B"]]
        assert clean[:16] == words
        assert clean[-1] == clean[at["A"] - 1] == corrupted[at["B"] - 1]
        assert pair["answer"].strip() == clean[at["answer"] - 1]
        assert pair["foil"].strip() == clean[at["foil"] - 1]


def test_in_a_pair_the_answer_follows_a_and_the_foil_what_took_its_place() -> None:
    for pair in swapped_pairs(draw(40, 16, seed=3)):
        clean, corrupted = pair["clean"].split(), pair["corrupted"].split()
        assert clean[clean.index(clean[-1]) + 1] == pair["answer"].strip()
        assert corrupted[corrupted.index(corrupted[-1]) + 1] == pair["foil"].strip()
        assert pair["foil"].strip() not in clean[16:]


def test_heads_are_ranked_within_their_layer() -> None:
    assert ranked(np.array([[0.1, 0.9, 0.5], [1.0, 1.0, 1.0]]), 0) == [(0, 1), (0, 2), (0, 0)]


def test_the_pages_tables_are_those_of_the_committed_figures() -> None:
    text = (DOCS / "induction.md").read_text(encoding="utf-8")
    figures = json.loads((DOCS / "induction.json").read_text(encoding="utf-8"))
    assert with_tables(tables(figures), text, SCRIPT) == text


def test_figures_are_written_with_a_line_for_each_row_of_numbers(tmp_path: Path) -> None:
    found = {"name": "a", "rows": [[0.123456, 1.0], [2.0, None]], "words": ["b", "c"], "none": []}
    write_figures(rounded(found), tmp_path / "figures.json")
    text = (tmp_path / "figures.json").read_text(encoding="utf-8")
    assert json.loads(text) == rounded(found)
    assert "[ 0.1235, 1.0 ]" in text
