"""Path patching finds how the heads of tests/hand_built.py compose, and nothing else."""

from typing import Any

import pytest

from tests.services.methods.circuit import (
    EARLIER,
    END,
    NOTHING,
    B,
    array,
    assert_only,
    run,
)
from tests.services.methods.conftest import Laboratory


def sent(laboratory: Laboratory, pair: dict[str, Any], receiver: str, **method: Any) -> dict[str, float]:
    """Normalized effect of every sender through paths to one receiver."""
    body = {"type": "path_patching", "receivers": [receiver], **method}
    result = run(laboratory, "patching", body, pairs=[pair])
    return dict(zip(result.senders, array(result.normalized).tolist(), strict=True))


@pytest.mark.parametrize("mode", ["denoising", "noising"])
def test_path_patching_finds_the_composition_of_the_two_heads(hand_built: Laboratory, mode: str) -> None:
    composed = sent(hand_built, EARLIER, "a1.h2<k>", mode=mode)
    assert composed["a0.h1"] == pytest.approx(1, abs=NOTHING)
    assert max(abs(effect) for sender, effect in composed.items() if sender != "a0.h1") < NOTHING
    for receiver in ("a1.h2<q>", "a1.h2<v>", "a2.h0<k>", "m2"):
        effects = sent(hand_built, EARLIER, receiver, mode=mode)
        assert max(map(abs, effects.values())) < NOTHING, receiver
    direct = sent(hand_built, EARLIER, "logits", mode=mode)
    assert direct["a1.h2"] == pytest.approx(1, abs=NOTHING)
    assert max(abs(effect) for sender, effect in direct.items() if sender != "a1.h2") < NOTHING


def test_path_patching_finds_where_the_composition_happens(hand_built: Laboratory) -> None:
    body = {"type": "path_patching", "receivers": ["a1.h2<k>"], "senders": ["a0.h1", "a0.h0"], "positions": [3, B, END]}
    result = run(hand_built, "patching", body, pairs=[EARLIER])
    assert_only(array(result.normalized), {(0, 1): 1})
