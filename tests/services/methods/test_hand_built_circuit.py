"""The circuit that was written into the weights of tests/hand_built.py is found by every method that claims to find it.

Nothing else is: the model's other heads and MLPs are busy, but nobody reads what they write.
"""

from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from services.contracts.tensor import InlineTensor
from tests.hand_built import INDUCTION, PREVIOUS_TOKEN, WORDS
from tests.services.methods.conftest import Laboratory

CLEAN = "<bos> d e a b f g a"
FIRST_A, B, END = 3, 4, 7
EARLIER = {"clean": CLEAN, "corrupted": "<bos> d e x b f g a", "answer": " b", "foil": " h"}
"""No earlier a: nothing marks b as what followed it. The change travels 0.1's value → 1.2's key."""
FOLLOWER = {"clean": CLEAN, "corrupted": "<bos> d e a c f g a", "answer": " b", "foil": " c"}
"""Another token follows a. The change travels straight to 1.2's value."""
ASKED = {"clean": CLEAN, "corrupted": "<bos> d e a b f g y", "answer": " b", "foil": " h"}
"""Another token asks. The change travels straight to 1.2's query."""
EXAMPLE = {"prompt": CLEAN, "answer": " b", "foil": " h"}

NOTHING = 2e-3
"""Of the circuit's own effect: what the shared scale of the norms lets through."""

Cells = dict[tuple[int, ...], float]


def run(laboratory: Laboratory, kind: str, method: dict[str, Any] | None = None, **fields: Any) -> Any:
    body = {"kind": kind, "model": "hand-built", **fields}
    return laboratory.run(body if method is None else body | {"method": method})


def array(estimate: Any) -> Any:
    assert isinstance(estimate, InlineTensor)
    return estimate.array()


def assert_only(found: Any, expected: Cells, tolerance: float = NOTHING) -> None:
    """`found` is as expected in these cells and nothing elsewhere, relative to the largest expected value."""
    whole = np.zeros_like(found)
    for cell, value in expected.items():
        whole[cell] = value
    np.testing.assert_allclose(found, whole, atol=tolerance * max(map(abs, expected.values())))


def patched(laboratory: Laboratory, pair: dict[str, Any], site: str, **method: Any) -> Any:
    body = {"type": "activation_patching", "site": site, **method}
    return array(run(laboratory, "patching", body, pairs=[pair]).normalized)


def test_the_model_completes_what_it_has_seen_and_attends_as_built(hand_built: Laboratory) -> None:
    """By plain transformers in float64."""
    model = AutoModelForCausalLM.from_pretrained(
        hand_built.folder("hand-built"), dtype=torch.float64, attn_implementation="eager"
    )
    for prompt, answer in ((CLEAN, "b"), (FOLLOWER["corrupted"], "c"), ("<bos> two b q two r three b", "q")):
        with torch.no_grad():
            found = model(torch.tensor([[WORDS.index(word) for word in prompt.split()]]), output_attentions=True)
        logits = found.logits[0, -1]
        others = logits[torch.arange(len(WORDS)) != WORDS.index(answer)]
        assert logits[WORDS.index(answer)] - others.max() > 9.5
        for place, pattern in ((PREVIOUS_TOKEN, found.attentions[0]), (INDUCTION, found.attentions[1])):
            assert place[0] in (0, 1)
            attended = pattern[0, place[1]]
            source = END - 1 if place == PREVIOUS_TOKEN else prompt.split().index(answer)
            assert attended[END, source] > 0.97


def test_activation_patching_finds_the_two_heads(hand_built: Laboratory) -> None:
    for mode in ("denoising", "noising"):
        assert_only(patched(hand_built, EARLIER, "z", mode=mode), {PREVIOUS_TOKEN: 1, INDUCTION: 1})
        assert_only(patched(hand_built, FOLLOWER, "z", mode=mode), {INDUCTION: 1})
        assert_only(patched(hand_built, ASKED, "z", mode=mode), {INDUCTION: 1})


def test_activation_patching_finds_their_inputs_and_where_they_act(hand_built: Laboratory) -> None:
    everywhere = {"positions": list(range(END + 1))}
    by_position = patched(hand_built, EARLIER, "z", **everywhere)
    assert_only(by_position, {(*PREVIOUS_TOKEN, B): 1, (*INDUCTION, END): 1})
    assert_only(patched(hand_built, EARLIER, "v", **everywhere), {(*PREVIOUS_TOKEN, FIRST_A): 1})
    assert_only(patched(hand_built, EARLIER, "k", **everywhere), {(*INDUCTION, B): 1})
    assert_only(patched(hand_built, EARLIER, "pattern"), {INDUCTION: 1})
    assert_only(patched(hand_built, FOLLOWER, "v", **everywhere), {(*INDUCTION, B): 1})
    assert_only(patched(hand_built, ASKED, "q", **everywhere), {(*INDUCTION, END): 1})


def test_activation_patching_follows_the_residual_stream(hand_built: Laboratory) -> None:
    assert_only(patched(hand_built, EARLIER, "resid_pre"), {(0, FIRST_A): 1, (1, B): 1, (2, END): 1})
    assert_only(patched(hand_built, EARLIER, "attn_out"), {(0, B): 1, (1, END): 1})
    np.testing.assert_allclose(patched(hand_built, EARLIER, "mlp_out"), 0, atol=NOTHING)


def test_direct_logit_attribution_finds_the_induction_head(hand_built: Laboratory) -> None:
    result = run(hand_built, "attribution", {"type": "direct_logit_attribution"}, examples=[EXAMPLE])
    terms = result.attribution.terms
    (example,) = result.attribution.examples
    assert_only(array(terms.heads), {INDUCTION: example.metric}, tolerance=1e-5)
    for term in (terms.embedding, terms.mlps, terms.attention_bias):
        np.testing.assert_allclose(array(term), 0, atol=1e-4)
