"""Jobs on the circuit of tests/hand_built.py, what they must find, and how to say "and nothing else".

At END the induction head attends to B with e^m / (e^m + e^s + rest), where m is the score of a match and s that of BOS,
and its logit is that weight times `LOGIT`; without a match m is 0.
"""

import math
from typing import Any

import numpy as np

from services.contracts.tensor import InlineTensor
from tests.hand_built import BEGINNING_SCORE, LOGIT, MATCH_SCORE
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

OTHERS = END - 1
"""Positions that END sees and that score 0: all but BOS and B, itself too."""

MATCHED = math.exp(MATCH_SCORE) / (math.exp(MATCH_SCORE) + math.exp(BEGINNING_SCORE) + OTHERS)
UNMATCHED = 1 / (math.exp(BEGINNING_SCORE) + OTHERS + 1)
"""END's attention to B in the clean run, and where nothing matches."""

CLEAN_LOGIT, CORRUPTED_LOGIT = LOGIT * MATCHED, LOGIT * UNMATCHED
EFFECT = CLEAN_LOGIT - CORRUPTED_LOGIT
"""Of answer over foil in logits: in the clean run, with EARLIER or ASKED corrupted, and what the circuit moves."""

THROUGH_SCORE = {
    "denoising": LOGIT * UNMATCHED * (1 - UNMATCHED) * MATCH_SCORE,
    "noising": -LOGIT * MATCHED * (1 - MATCHED) * MATCH_SCORE,
}
"""The change of the score times the logit's slope in it at the run that is patched."""

NOTHING = 5e-4
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
