"""What the gateway estimates is what the engine bills."""

import json
from typing import Any

import pytest

from services.catalogue.resolve import Limits, resolve
from tests.services.methods.conftest import SPEC, Laboratory
from tests.services.methods.test_activation_patching import job

EXAMPLE = {"prompt": "The Eiffel Tower is in", "answer": " is", "foil": " John"}
ATTRIBUTION = {
    "kind": "attribution",
    "model": "tiny-llama",
    "method": {"type": "direct_logit_attribution"},
    "examples": [EXAMPLE, EXAMPLE | {"prompt": "When John and Mary went to the shops, John"}],
}
PAIRS = job("llama", "resid_pre")["pairs"]
ALL_CHECKED = {"type": "attribution_patching", "check": {"top_k": 1_000}, "positions": [-4, -1]}
EVERY_NODE = {"nodes": ["q", "k", "v", "z", "attn_out", "mlp_out", "resid_pre"]}


def attribution_patching(**method: Any) -> dict[str, Any]:
    """With every node checked, so that what the check costs is known beforehand."""
    return {"kind": "attribution", "model": "tiny-llama", "method": ALL_CHECKED | method, "pairs": PAIRS}


GRADIENT_X_INPUT = ATTRIBUTION | {"method": {"type": "gradient_x_input"}}
INTEGRATED_GRADIENTS = {
    "kind": "attribution",
    "model": "tiny-llama",
    "method": {"type": "integrated_gradients", "steps": 7},
    "pairs": PAIRS,
}
FROM_ZERO = ATTRIBUTION | {"method": {"type": "integrated_gradients", "baseline": "zero", "steps": 7}}


def edge_attribution_patching(model: str = "tiny-llama", metric: str = "logit_diff", **method: Any) -> dict[str, Any]:
    asked = {"type": "edge_attribution_patching", **method}
    return {"kind": "attribution", "model": model, "method": asked, "pairs": PAIRS, "metric": {"type": metric}}


@pytest.mark.parametrize(
    "body",
    [
        ATTRIBUTION,
        GRADIENT_X_INPUT,
        INTEGRATED_GRADIENTS,
        FROM_ZERO,
        attribution_patching(),
        attribution_patching(**EVERY_NODE, mode="noising", positions=None),
        attribution_patching(**EVERY_NODE, variant="atp_star", positions=None),
        attribution_patching(variant="atp_star", nodes=["q", "k"]),
        attribution_patching(variant="atp_star"),
        attribution_patching() | {"metric": {"type": "kl_divergence"}},
        edge_attribution_patching(variant="eap"),
        edge_attribution_patching(steps=4),
        edge_attribution_patching("tiny-gpt-neox", variant="eap_ig_activations", steps=2),
        edge_attribution_patching(metric="kl_divergence", steps=4),
        job("llama", "resid_pre"),
        job("llama", "mlp_out", method={"mode": "noising"}),
        job("llama", "z"),
        job("llama", "z", method={"positions": [-5, -1]}),
        job("gpt_neox", "embed"),
    ],
    ids=[
        "attribution",
        "gradient x input",
        "integrated gradients",
        "from zero",
        "attribution patching",
        "attribution patching of all nodes",
        "atp star of all nodes",
        "atp star of queries and keys",
        "atp star of heads and mlps",
        "attribution patching of a divergence",
        "eap",
        "eap-ig of inputs",
        "eap-ig of activations",
        "eap-ig of a divergence",
        "resid_pre",
        "mlp_out",
        "z",
        "z by position",
        "embed",
    ],
)
def test_a_job_is_billed_what_was_estimated(laboratory: Laboratory, body: dict[str, Any]) -> None:
    estimate = resolve(SPEC.validate_json(json.dumps(body)), laboratory.catalogue, Limits()).cost.token_layers
    billed = laboratory.run(body).usage.token_layers
    assert billed / estimate == pytest.approx(1.0, abs=0.02)
