"""The induction example's own arithmetic, and that its page says what its figures say."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.induction import DOCS, draw, losses, ranked
from examples.induction_paths import swapped_pairs
from examples.induction_report import INDUCERS, LARGE, OTHERS, SCRIPT, SMALL, TELLERS, tables
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


@pytest.fixture(scope="module")
def figures() -> Any:
    return json.loads((DOCS / "induction.json").read_text(encoding="utf-8"))


def test_the_pages_tables_are_those_of_the_committed_figures(figures: Any) -> None:
    text = (DOCS / "induction.md").read_text(encoding="utf-8")
    assert with_tables(tables(figures), text, SCRIPT) == text


def test_in_the_committed_figures_the_gain_is_gone_without_either_kind_of_head(figures: Any) -> None:
    curves = figures[SMALL]["curves"]
    whole = curves[TELLERS][0]["gain"]
    assert np.min(figures[SMALL]["scores"]["induction"][1]) > 0.8
    assert curves[INDUCERS][8]["gain"] < 0.1 * whole
    assert curves[TELLERS][4]["gain"] < 0.1 * whole
    assert curves[OTHERS][4]["gain"] > 0.95 * whole
    zeroed = figures[LARGE]["zeroed"]
    assert zeroed["induction heads"]["gain"] < 0.5 * zeroed["none"]["gain"]
    assert zeroed["others beside the induction heads"]["gain"] > 0.95 * zeroed["none"]["gain"]


def test_in_the_committed_figures_layer_0_tells_layer_1_by_its_keys(figures: Any) -> None:
    found = figures[SMALL]["composition"]
    largest = {read: np.max(np.abs(paths["normalized"])) for read, paths in found["by_input"].items()}
    assert largest["k of layer 1"] > 3 * largest["v of layer 1"]
    assert largest["q of layer 1"] < 0.01
    assert largest["logits"] < 0.01
    assert found["together"][-1]["normalized"] == pytest.approx(1, abs=0.05)
    alone = found["by_input"]["k of layer 1"]["normalized"][found["senders"].index("a0.h3")]
    assert found["together"][0] == {"heads": [[0, 3]], "normalized": pytest.approx(alone, abs=1e-3)}


def test_figures_are_written_with_a_line_for_each_row_of_numbers(tmp_path: Path) -> None:
    found = {"name": "a", "rows": [[0.123456, 1.0], [2.0, None]], "words": ["b", "c"], "none": []}
    write_figures(rounded(found), tmp_path / "figures.json")
    text = (tmp_path / "figures.json").read_text(encoding="utf-8")
    assert json.loads(text) == rounded(found)
    assert "[ 0.1235, 1.0 ]" in text
