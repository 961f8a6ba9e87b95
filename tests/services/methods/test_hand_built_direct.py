"""Direct logit attribution says what the induction head of tests/hand_built.py writes and from where, and no more."""

from typing import Any

import numpy as np
import pytest

from tests.hand_built import INDUCTION
from tests.services.methods.circuit import CLEAN_LOGIT, END, EXAMPLE, B, array, assert_only, run
from tests.services.methods.conftest import Laboratory


def attributed(laboratory: Laboratory, **method: Any) -> Any:
    body = {"type": "direct_logit_attribution", **method}
    return run(laboratory, "attribution", body, examples=[EXAMPLE]).attribution


def test_the_induction_head_is_the_only_term(hand_built: Laboratory) -> None:
    outcome = attributed(hand_built)
    (example,) = outcome.examples
    assert example.metric == pytest.approx(CLEAN_LOGIT, rel=1e-3)
    assert_only(array(outcome.terms.heads), {INDUCTION: example.metric}, tolerance=1e-5)
    for term in (outcome.terms.embedding, outcome.terms.mlps, outcome.terms.attention_bias):
        np.testing.assert_allclose(array(term), 0, atol=1e-4)


def test_its_contribution_comes_from_the_token_that_followed(hand_built: Laboratory) -> None:
    outcome = attributed(hand_built, by_source=True)
    assert_only(array(outcome.by_source), {(*INDUCTION, B): CLEAN_LOGIT})


def test_it_writes_the_answer_where_the_question_is(hand_built: Laboratory) -> None:
    """Elsewhere its soft pattern writes a little, as at every position that sees B and matches nothing."""
    heads = array(attributed(hand_built, by_position=True).by_position.heads)
    others = np.delete(heads.reshape(-1, heads.shape[-1]), np.ravel_multi_index(INDUCTION, heads.shape[:-1]), axis=0)
    np.testing.assert_allclose(others, 0, atol=1e-4)
    assert int(heads[INDUCTION].argmax()) == END
    assert heads[INDUCTION][:B] == pytest.approx(0, abs=1e-4)


def test_no_neuron_writes_into_the_logits(hand_built: Laboratory) -> None:
    neurons = attributed(hand_built, neurons=5).neurons
    assert max(abs(neuron.contribution.mean) for neuron in neurons) < 1e-4
