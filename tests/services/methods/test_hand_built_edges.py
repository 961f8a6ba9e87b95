"""Edge attribution patching finds the edges written into the weights of tests/hand_built.py, and only them."""

from typing import Any

import pytest

from tests.services.methods.circuit import ASKED, EARLIER, EFFECT, FOLLOWER, NOTHING, run
from tests.services.methods.conftest import Laboratory


def edges(laboratory: Laboratory, pair: dict[str, Any], **method: Any) -> dict[str, float]:
    body = {"type": "edge_attribution_patching", "top_k": 100, **method}
    outcome = run(laboratory, "attribution", body, pairs=[pair]).attribution
    return {edge.edge: edge.score.mean for edge in outcome.edges}


@pytest.mark.parametrize(
    ("pair", "circuit"),
    [
        (EARLIER, {"input->a0.h1<v>", "a0.h1->a1.h2<k>", "a1.h2->logits"}),
        (FOLLOWER, {"input->a1.h2<v>", "a1.h2->logits"}),
        (ASKED, {"input->a1.h2<q>", "a1.h2->logits"}),
    ],
    ids=["earlier", "follower", "asked"],
)
@pytest.mark.parametrize("variant", ["eap", "eap_ig_inputs", "eap_ig_activations"])
def test_edge_attribution_finds_the_circuits_edges(
    hand_built: Laboratory, pair: dict[str, Any], circuit: set[str], variant: str
) -> None:
    found = edges(hand_built, pair, variant=variant)
    largest = max(map(abs, found.values()))
    assert {edge for edge, score in found.items() if abs(score) > NOTHING * largest} == circuit


def test_integrated_edges_carry_the_whole_effect(hand_built: Laboratory) -> None:
    found = edges(hand_built, EARLIER, variant="eap_ig_inputs", steps=50)
    for edge in ("input->a0.h1<v>", "a0.h1->a1.h2<k>", "a1.h2->logits"):
        assert found[edge] == pytest.approx(EFFECT, rel=0.01)
    assert sum(score for edge, score in found.items() if edge.endswith("->logits")) == pytest.approx(
        EFFECT, rel=NOTHING
    )
