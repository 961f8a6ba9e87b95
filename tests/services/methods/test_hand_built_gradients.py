"""Gradients find the circuit that was written into the weights of tests/hand_built.py, in the sizes worked out by hand.

The induction head's logit is linear in its output and a softmax in its score, so that estimates at one run are exact
for the former and have a closed form for the latter.
"""

from typing import Any

import numpy as np
import pytest

from tests.hand_built import BEGINNING_SCORE, LOGIT, MATCH_SCORE
from tests.services.methods.circuit import (
    ASKED,
    EARLIER,
    END,
    EXAMPLE,
    FIRST_A,
    FOLLOWER,
    MATCHED,
    THROUGH_SCORE,
    B,
    Cells,
    array,
    assert_only,
    run,
)
from tests.services.methods.conftest import Laboratory


def test_gradient_times_input_finds_the_tokens_that_the_circuit_reads(hand_built: Laboratory) -> None:
    result = run(hand_built, "attribution", {"type": "gradient_x_input"}, examples=[EXAMPLE])
    (example,) = result.attribution.examples
    beginning = MATCHED * np.exp(BEGINNING_SCORE - MATCH_SCORE)
    expected: Cells = {
        (0,): -LOGIT * MATCHED * beginning * BEGINNING_SCORE,
        (FIRST_A,): -THROUGH_SCORE["noising"],
        (B,): LOGIT * MATCHED,
        (END,): -THROUGH_SCORE["noising"],
    }
    assert_only(array(example.attributions), expected)


@pytest.mark.parametrize(("pair", "position"), [(EARLIER, FIRST_A), (FOLLOWER, B), (ASKED, END)])
def test_integrated_gradients_finds_the_token_that_was_changed(
    hand_built: Laboratory, pair: dict[str, Any], position: int
) -> None:
    result = run(hand_built, "attribution", {"type": "integrated_gradients"}, pairs=[pair])
    (example,) = result.attribution.examples
    difference = example.metric - example.baseline_metric
    assert_only(array(example.attributions), {(position,): difference})
    assert abs(example.completeness_gap) < 0.01 * difference
