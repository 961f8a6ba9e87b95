"""Attribution patching finds the nodes of tests/hand_built.py, in the sizes worked out by hand."""

from typing import Any

import numpy as np
import pytest

from tests.hand_built import INDUCTION, PREVIOUS_TOKEN
from tests.services.methods.circuit import (
    ASKED,
    EARLIER,
    EFFECT,
    END,
    FIRST_A,
    NOTHING,
    THROUGH_SCORE,
    B,
    array,
    assert_only,
    run,
)
from tests.services.methods.conftest import Laboratory


def attribution_patching(laboratory: Laboratory, pair: dict[str, Any], **method: Any) -> Any:
    body = {"type": "attribution_patching", **method}
    return run(laboratory, "attribution", body, pairs=[pair]).attribution


def by_site(outcome: Any) -> dict[str, Any]:
    return {node.site: array(node.effects) for node in outcome.nodes}


@pytest.mark.parametrize("mode", ["denoising", "noising"])
def test_attribution_patching_finds_every_node_of_the_circuit(hand_built: Laboratory, mode: str) -> None:
    """Linear nodes with their exact effect, those behind the softmax with its slope at the patched run."""
    nodes = ["q", "k", "v", "z", "attn_out", "mlp_out", "resid_pre"]
    found = by_site(attribution_patching(hand_built, EARLIER, variant="atp", mode=mode, nodes=nodes))
    exact, sloped = EFFECT if mode == "denoising" else -EFFECT, THROUGH_SCORE[mode]
    assert_only(found["z"], {(*PREVIOUS_TOKEN, B): sloped, (*INDUCTION, END): exact})
    assert_only(found["v"], {(*PREVIOUS_TOKEN, FIRST_A): sloped})
    assert_only(found["k"], {(*INDUCTION, B): sloped})
    assert_only(found["attn_out"], {(0, B): sloped, (1, END): exact})
    assert_only(found["resid_pre"], {(0, FIRST_A): sloped, (1, B): sloped, (2, END): exact})
    for site in ("q", "mlp_out"):
        np.testing.assert_allclose(found[site], 0, atol=NOTHING * EFFECT)


def test_attribution_patching_checks_itself(hand_built: Laboratory) -> None:
    """Of the two nodes that matter, one is underestimated; no other matters, so none is missed."""
    body: dict[str, Any] = {"nodes": ["z", "mlp_out"], "check": {"top_k": 2, "sampled": 20}}
    more = attribution_patching(hand_built, EARLIER, **body | {"check": {"top_k": 10, "sampled": 20}}).check
    assert more.false_negatives == 0
    check = attribution_patching(hand_built, EARLIER, **body).check
    assert check.false_negatives == 0
    assert max(abs(cell.exact) for cell in check.cells if cell.chosen == "sampled") < NOTHING * EFFECT
    exact = {(cell.site, cell.layer, cell.head, cell.position): cell.exact for cell in check.cells}
    assert exact["z", *PREVIOUS_TOKEN, B] == pytest.approx(EFFECT, rel=NOTHING)
    assert exact["z", *INDUCTION, END] == pytest.approx(EFFECT, rel=NOTHING)
    assert check.largest_error == pytest.approx(EFFECT - THROUGH_SCORE["denoising"], rel=NOTHING)


@pytest.mark.parametrize(("pair", "site", "position"), [(EARLIER, "k", B), (ASKED, "q", END)])
@pytest.mark.parametrize("mode", ["denoising", "noising"])
def test_atp_star_is_exact_where_only_a_pattern_lies_between(
    hand_built: Laboratory, pair: dict[str, Any], site: str, position: int, mode: str
) -> None:
    """The pattern is recomputed, and the logit is linear in it."""
    found = by_site(attribution_patching(hand_built, pair, variant="atp_star", mode=mode, nodes=["q", "k"]))
    assert_only(np.abs(found[site]), {(*INDUCTION, position): EFFECT})
