"""What the gateway estimates for ablations, interventions and path patching is what the engine bills."""

import json
from typing import Any

import pytest

from services.catalogue.resolve import Limits, resolve
from tests.services.methods import test_ablation as ablation
from tests.services.methods import test_intervention as intervention
from tests.services.methods import test_path_patching as paths
from tests.services.methods.conftest import SPEC, Laboratory
from tests.services.methods.test_activation_patching import OTHER_PAIR, PAIR

MEAN = {"type": "mean_ablation", "references": [*ablation.ALIKE, *ablation.UNLIKE]}
RESAMPLE = MEAN | {"type": "resample_ablation", "samples": 2}
ZERO = {"type": "zero_ablation"}
TWO = {"examples": [ablation.EXAMPLE, ablation.SHORT]}
Z = {"site": "z", "layer": 2, "head": 1, "positions": [-2]}
OTHER_RUN = {"type": "run", "prompt": intervention.OTHER}


@pytest.mark.parametrize(
    "body",
    [
        ablation.job("llama", ZERO | {"site": "z"}, **TWO),
        ablation.job("llama", ZERO | {"site": "resid_post", "positions": [-3, 2]}, **TWO),
        ablation.job("llama", ZERO | {"site": "embed", "at_once": True}, **TWO),
        ablation.job("llama", MEAN | {"site": "mlp_out", "at_once": True, "layers": [1]}, **TWO),
        ablation.job("llama", MEAN | {"site": "z"}, **TWO, metric={"type": "kl_divergence"}),
        ablation.job("llama", RESAMPLE | {"site": "v", "positions": [-1], "layers": [2]}, **TWO),
        ablation.job("llama", RESAMPLE | {"site": "resid_pre"}, metric={"type": "cross_entropy"}),
        intervention.job("llama", Z | {"operation": "scale", "value": 0.0}),
        intervention.job("llama", Z | {"operation": "set", "value": OTHER_RUN}, top_k=3, position=1),
        intervention.job("llama", Z | {"operation": "add", "value": OTHER_RUN}, metric={"type": "kl_divergence"}),
        intervention.job("llama", Z | {"operation": "set", "value": 1.0}, activations=[{"site": "q", "layer": 1}]),
        intervention.job(
            "llama",
            Z | {"operation": "set", "value": 1.0},
            metric=None,
            activations=[{"site": "resid_post", "layer": 1}],
        ),
        intervention.job("gpt_neox", {"site": "embed", "operation": "scale", "value": 2.0}, **TWO),
        paths.job("llama", ["logits"]),
        paths.job("llama", ["a2.h1<q>", "m1"], method={"mode": "noising"}),
        paths.job("llama", ["a2.h1<q>"], method={"senders": ["a1.h0"], "positions": [-5, -1, 0]}),
        paths.job("llama", ["m2"], method={"receiver_positions": [-2], "freeze_mlps": True}),
        paths.job("gpt_neox", ["a1.h3<v>"], method={"senders": ["input", "m0"]}, pairs=[PAIR, OTHER_PAIR]),
        paths.job("llama", ["logits"], metric={"type": "kl_divergence", "position": -2}),
        paths.job("llama", ["m1"], metric={"type": "cross_entropy"}),
    ],
    ids=lambda body: json.dumps(body)[:80],
)
def test_a_job_is_billed_what_was_estimated(laboratory: Laboratory, body: dict[str, Any]) -> None:
    estimate = resolve(SPEC.validate_json(json.dumps(body)), laboratory.catalogue, Limits()).cost.token_layers
    billed = laboratory.run(body).usage.token_layers
    assert billed / estimate == pytest.approx(1.0, abs=0.02)
