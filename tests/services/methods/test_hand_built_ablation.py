"""Ablating either head of tests/hand_built.py destroys the answer, and ablating anything else does not."""

from typing import Any

import numpy as np
import pytest

from tests.hand_built import INDUCTION, PREVIOUS_TOKEN
from tests.services.methods.circuit import (
    CLEAN_LOGIT,
    EFFECT,
    END,
    EXAMPLE,
    NOTHING,
    B,
    array,
    assert_only,
    run,
)
from tests.services.methods.conftest import Laboratory

REFERENCES = ["<bos> p q r s t u v", "<bos> v u t s r q p"]
"""They hold neither the answer nor a match for what END asks."""


@pytest.mark.parametrize(
    "method",
    [
        {"type": "zero_ablation"},
        {"type": "mean_ablation", "references": REFERENCES},
        {"type": "resample_ablation", "references": REFERENCES, "seed": 0, "samples": 3},
    ],
    ids=lambda method: str(method["type"]),
)
def test_ablation_destroys_the_answer_by_either_head_alone(hand_built: Laboratory, method: dict[str, Any]) -> None:
    result = run(hand_built, "ablation", method | {"site": "z"}, examples=[EXAMPLE])
    assert_only(array(result.effects), {PREVIOUS_TOKEN: -EFFECT, INDUCTION: -CLEAN_LOGIT})
    mlps = run(hand_built, "ablation", method | {"site": "mlp_out", "positions": [B, END]}, examples=[EXAMPLE])
    np.testing.assert_allclose(array(mlps.effects), 0, atol=NOTHING * EFFECT)
