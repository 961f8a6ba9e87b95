"""The parts of the IOI study that need no server: its prompts, its criteria, and what it writes."""

from pathlib import Path
from typing import Any

import pytest

from examples.ioi import Step, place
from examples.ioi_prompts import Cut, examples, pairs, positions, sample, single_token_names
from examples.ioi_report import LOOKS, SCRIPT, write_report
from examples.page import BEGIN, END
from services.catalogue.catalogue import Catalogue


@pytest.fixture
def cut(catalogue: Catalogue) -> Cut:
    tokenizer = catalogue.tokenizer("smollm2-135m")
    return lambda text: list(tokenizer.read(text, bos=False).strings)


def test_every_name_is_one_token_and_every_position_holds_what_it_is_called(cut: Cut) -> None:
    names = single_token_names(cut)
    assert len(names) > 50
    for prompt, others in sample(names, 40, seed=1):
        tokens, at = cut(prompt.clean), positions(prompt, cut)
        assert tokens[at["S1"]] == tokens[at["S2"]] == f" {prompt.subject}"
        assert tokens[at["IO"]] == f" {prompt.indirect_object}"
        assert at["S1"] < at["S1+1"] <= at["S2"] < at["END"] == len(tokens) - 1
        assert not {*others} & {prompt.first, prompt.second}
        assert "{" not in prompt.clean


def test_a_seed_draws_the_same_prompts_and_subjects_come_first_in_half_of_them(cut: Cut) -> None:
    names = single_token_names(cut)
    drawn = sample(names, 40, seed=1)
    assert drawn == sample(names, 40, seed=1) != sample(names, 40, seed=2)
    assert sum(prompt.subject == prompt.first for prompt, _ in drawn) == 20


def test_corruptions_change_only_names_and_keep_the_length(cut: Cut) -> None:
    drawn = sample(single_token_names(cut), 20, seed=1)
    changed = {"s2_flip": ["S2"], "abc": ["IO", "S1", "S2"]}
    for corruption in ("s2_flip", "abc"):
        for pair, example in zip(pairs(drawn, corruption, cut), examples(drawn), strict=True):
            clean, corrupted = cut(pair["clean"]), cut(pair["corrupted"])
            differing = [index for index, token in enumerate(clean) if token != corrupted[index]]
            assert len(clean) == len(corrupted)
            assert differing == sorted(pair["positions"][name] for name in changed[corruption])
            assert (pair["answer"], pair["foil"]) == (example["answer"], example["foil"])


def test_a_head_has_an_effect_when_it_is_large_and_beyond_its_error() -> None:
    step = Step(
        receivers=("logits",),
        position="END",
        senders=("a0.h1", "a9.h6", "a9.h7", "m3"),
        effects=(-0.02, 0.3, -0.2, -0.9),
        errors=(0.001, 0.01, 0.1, 0.001),
    )
    assert step.heads() == ["a9.h6", "a0.h1"]
    assert place("a9.h6") == (9, 6)


def found() -> dict[str, Any]:
    preference = {"accuracy": 0.97, "mean": 3.5, "standard_error": 0.1, "prompts": 100}
    one = {"receivers": ["logits"], "senders": ["a0.h1", "m0"], "effects": [-0.25, 0.0], "errors": [0.01, 0.0]}
    zeros = [[0.0, 0.0], [0.0, 0.0]]
    scores = dict.fromkeys(("copying", "previous_token", "duplicate_token", "induction"), zeros)
    looks = {"END→IO": 0.7, "END→S1": 0.1, "END→S2": 0.2}
    return {
        "behaviour": {"clean": preference, "s2_flip": preference, "abc": preference},
        "direct": {"heads": [[0.0, 1.5], [0.0, 0.0]], "logits": {"IO": [[0.0, 2.0], [0.0, 0.0]]}},
        "steps": {"logits": one},
        "classes": {"name mover": ["a0.h1"]},
        "attention": {"a0.h1": looks},
        "scores": scores,
    }


def test_the_report_puts_its_tables_between_the_pages_marks(tmp_path: Path) -> None:
    page = tmp_path / "ioi.md"
    begin = BEGIN.format(SCRIPT)
    page.write_text(f"before\n{begin}\nold\n{END}\nafter\n", encoding="utf-8")
    write_report(found(), tmp_path)
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{begin}\n| prompts |")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    assert "| name mover | 0.1 | → logits | -25.0 ± 1.0 | +2.00 | END→IO 0.70 | copying 0.00 |" in text
    assert text.count("| none |") == len(LOOKS) - 1
    assert {path.name for path in tmp_path.iterdir()} == {"ioi.md", "ioi.json", "ioi-heads.png", "ioi-attention.png"}
