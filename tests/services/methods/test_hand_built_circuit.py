"""The circuit that was written into the weights of tests/hand_built.py is found by every method that claims to find it.

Nothing else is: the model's other heads and MLPs are busy, but nobody reads what they write.
"""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from services.contracts.tensor import Statistic
from tests.hand_built import D_HEAD, HEADS, INDUCTION, LAYERS, PREVIOUS_TOKEN, WORDS
from tests.services.methods.circuit import (
    ASKED,
    CLEAN,
    CLEAN_LOGIT,
    CORRUPTED_LOGIT,
    EARLIER,
    EFFECT,
    END,
    EXAMPLE,
    FIRST_A,
    FOLLOWER,
    MATCHED,
    NOTHING,
    B,
    array,
    assert_only,
    patched,
    run,
)
from tests.services.methods.conftest import Laboratory


def test_the_model_completes_what_it_has_seen_and_attends_as_built(hand_built: Laboratory) -> None:
    """By plain transformers in float64."""
    model = AutoModelForCausalLM.from_pretrained(
        hand_built.folder("hand-built"), dtype=torch.float64, attn_implementation="eager"
    )
    for prompt, answer in ((CLEAN, "b"), (FOLLOWER["corrupted"], "c"), ("<bos> two b q two r three b", "q")):
        words = prompt.split()
        with torch.no_grad():
            found = model(torch.tensor([[WORDS.index(word) for word in words]]), output_attentions=True)
        logits = found.logits[0, -1]
        assert WORDS[int(logits.argmax())] == answer
        assert float(logits.max()) == pytest.approx(CLEAN_LOGIT, rel=1e-3)
        assert float(logits.topk(2).values[1]) < CORRUPTED_LOGIT
        attended = [
            found.attentions[layer][0, head, END, source]
            for (layer, head), source in ((PREVIOUS_TOKEN, END - 1), (INDUCTION, words.index(answer)))
        ]
        assert min(attended) > 0.97


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


def changed(laboratory: Laboratory, *interventions: dict[str, Any]) -> Any:
    result = run(
        laboratory,
        "intervention",
        examples=[EXAMPLE],
        interventions=list(interventions),
        metric={"type": "logit_diff"},
        top_k=1,
    )
    return result.examples[0]


def test_an_intervention_on_a_head_changes_the_answer_as_built(hand_built: Laboratory) -> None:
    layer, head = INDUCTION
    place = {"site": "z", "layer": layer, "head": head, "positions": [-1]}
    scaled = changed(hand_built, place | {"operation": "scale", "value": 0.5})
    assert scaled.metric.patched == pytest.approx(CLEAN_LOGIT / 2, rel=NOTHING)
    vector = [float(index == WORDS.index("q")) for index in range(D_HEAD)]
    told = changed(hand_built, place | {"operation": "set", "value": {"type": "vector", "values": vector}})
    assert (told.top.unpatched[0].token, told.top.patched[0].token) == ("b", "q")
    run_value = {"type": "run", "prompt": EARLIER["corrupted"]}
    key = {"site": "k", "layer": layer, "head": head, "positions": [B], "operation": "set", "value": run_value}
    assert changed(hand_built, key).metric.patched == pytest.approx(CORRUPTED_LOGIT, abs=NOTHING * EFFECT)


def test_everything_but_the_two_heads_can_be_removed_at_once(hand_built: Laboratory) -> None:
    nothing = {"operation": "set", "value": 0}
    heads = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]
    others = [
        {"site": "z", "layer": layer, "head": head} | nothing
        for layer, head in heads
        if (layer, head) not in (PREVIOUS_TOKEN, INDUCTION)
    ]
    mlps = [{"site": "mlp_out", "layer": layer} | nothing for layer in range(LAYERS)]
    example = changed(hand_built, *others, *mlps)
    assert example.metric.effect == pytest.approx(0, abs=NOTHING * EFFECT)
    assert example.top.patched[0].token == "b"


def test_attention_scores_name_the_two_heads_and_no_other(hand_built: Laboratory) -> None:
    text = "<bos> a b c d e f g a b c d e f g"
    patterns = [{"layer": layer, "head": head} for layer, head in (PREVIOUS_TOKEN, INDUCTION)]
    result = run(hand_built, "attention", prompts=[text], patterns=patterns, random_tokens={"length": 20}, bos=True)
    for scores in (result.scores, result.random_scores):
        assert_one_head(scores.previous_token, PREVIOUS_TOKEN, least=0.9999)
        assert_one_head(scores.induction, INDUCTION, least=0.95)
        assert_one_head(scores.copying, INDUCTION, least=1)
        assert mean(scores.duplicate_token).max() < 0.5
    before, found = array(result.prompts[0].patterns)
    np.testing.assert_allclose(np.diagonal(before, -1), 1, atol=1e-4)
    np.testing.assert_allclose(np.diagonal(found, -6)[2:], MATCHED, atol=0.01)


def assert_one_head(scores: Any, head: tuple[int, int], least: float) -> None:
    """This head scores at least so much, and no other even half of 1."""
    values = mean(scores)
    assert values[head] >= least
    values[head] = 0
    assert values.max() < 0.5


def mean(scores: Any) -> Any:
    return array(scores.mean if isinstance(scores, Statistic) else scores).copy()


def test_the_logit_lens_shows_the_answer_after_layer_one(hand_built: Laboratory) -> None:
    result = run(hand_built, "logit_lens", examples=[EXAMPLE], metric={"type": "logit_diff"}, positions=[END], top_k=1)
    (example,) = result.examples
    assert result.layers == ("embed", 0, 1, 2)
    expected = np.array([[0.0], [0.0], [CLEAN_LOGIT], [CLEAN_LOGIT]])
    np.testing.assert_allclose(array(example.metric), expected, atol=NOTHING * CLEAN_LOGIT)
    assert [position[0][0].token for position in example.top[2:]] == ["b", "b"]
