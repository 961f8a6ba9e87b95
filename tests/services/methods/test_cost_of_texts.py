"""What the gateway estimates for generation and directions is what the engine bills, when no text ends early."""

import json
from typing import Any

import pytest

from services.catalogue.catalogue import Catalogue
from services.catalogue.resolve import Limits, resolve
from services.contracts.generation import GenerationResult
from tests.services.methods.conftest import SPEC, Laboratory
from tests.services.methods.saes import in_use
from tests.services.methods.test_direction import JOB
from tests.services.methods.test_generation import ALONG, FEATURE, PLAIN, PROMPTS, make_sae

SAMPLED = {"type": "sampled", "temperature": 2.0}
"""Texts at different strengths are different ones."""


@pytest.mark.parametrize(
    "body",
    [
        PLAIN,
        PLAIN | {"steering": [ALONG], "strengths": [3.0, 40.0], "sampling": SAMPLED},
        PLAIN | {"steering": [ALONG], "unit": "mean_norm", "sampling": SAMPLED},
        PLAIN | {"steering": [ALONG], "strengths": [3.0], "log_probs": False},
        PLAIN | {"steering": [FEATURE], "strengths": [9.0, -9.0], "from_position": -1, "sampling": SAMPLED},
        PLAIN | {"steering": [FEATURE | {"operation": "project_out"}], "sampling": SAMPLED},
        PLAIN | {"steering": [ALONG | {"operation": "clamp"}], "strengths": [3.0, 9.0], "sampling": SAMPLED},
        PLAIN | {"steering": [ALONG | {"operation": "clamp", "value": 0.1}], "unit": "mean_norm", "sampling": SAMPLED},
        PLAIN | {"steering": [{"type": "head", "layer": 2, "head": 1}], "sampling": SAMPLED},
        PLAIN | {"prompts": [{"type": "tokens", "tokens": [5] * 124}], "steering": [ALONG], "sampling": SAMPLED},
        JOB,
        JOB | {"layers": [0], "position": "mean"},
        JOB | {"layers": [2], "site": "resid_pre", "position": 1},
        JOB | {"layers": [2], "position": "last"},
    ],
    ids=lambda body: json.dumps(body)[:60],
)
def test_a_job_is_billed_what_was_estimated(laboratory: Laboratory, body: dict[str, Any]) -> None:
    used = in_use(make_sae(), bos=None)
    served = Catalogue(laboratory.catalogue.home, laboratory.catalogue.models, {"sae": used.facts})
    spec = SPEC.validate_json(json.dumps(body))
    estimate = resolve(spec, served, Limits()).cost.token_layers
    billed = Laboratory(laboratory.engine, served).run(body, used if spec.sae_id() else None).usage.token_layers
    assert billed / estimate == pytest.approx(1.0, abs=0.02)


def test_a_text_that_ends_early_costs_less_than_was_estimated(laboratory: Laboratory) -> None:
    body = PLAIN | {"prompts": PROMPTS[:1]}
    whole = laboratory.run(body)
    assert isinstance(whole, GenerationResult)
    stopping = body | {"stop": [whole.prompts[0].unsteered.tokens[2]]}
    estimate = resolve(SPEC.validate_json(json.dumps(stopping)), laboratory.catalogue, Limits()).cost.token_layers
    assert whole.usage.token_layers == estimate
    assert laboratory.run(stopping).usage.token_layers < estimate
