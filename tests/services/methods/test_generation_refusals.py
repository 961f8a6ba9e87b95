"""Generation that cannot be done: refused with a pointer where that can be known, else the job alone fails."""

from typing import Any

import pytest

from services.contracts.errors import ErrorCode, InvalidSpec, JobFailed
from services.saes.sae import Sae
from tests.families import D_MODEL
from tests.services.methods.conftest import Laboratory
from tests.services.methods.test_generation import ALONG, FEATURE, FEATURES, generate, make_sae


@pytest.fixture(scope="module")
def sae() -> Sae:
    return make_sae()


def refusals(laboratory: Laboratory, sae: Sae, **body: Any) -> dict[str, ErrorCode]:
    """What is refused, by where."""
    with pytest.raises(InvalidSpec) as refused:
        generate(laboratory, sae, **body)
    return {violation.pointer: violation.code for violation in refused.value.violations}


@pytest.mark.parametrize(
    ("steering", "pointer", "code"),
    [
        (FEATURE | {"index": FEATURES}, "/steering/0/index", ErrorCode.UNKNOWN_FEATURE),
        (FEATURE | {"operation": "ablate", "value": 1.0}, "/steering/0/value", ErrorCode.INVALID_REQUEST),
        (ALONG | {"layer": 3}, "/steering/0/layer", ErrorCode.UNKNOWN_LAYER),
        (ALONG | {"values": [1.0, 2.0]}, "/steering/0/values", ErrorCode.INVALID_REQUEST),
        (ALONG | {"values": [0.0] * D_MODEL}, "/steering/0/values", ErrorCode.INVALID_REQUEST),
        (ALONG | {"values": [1e200] * D_MODEL}, "/steering/0/values", ErrorCode.INVALID_REQUEST),
        (ALONG | {"value": 1e300}, "/strengths/0", ErrorCode.INVALID_REQUEST),
        (FEATURE | {"value": -1e16}, "/strengths/0", ErrorCode.INVALID_REQUEST),
        (FEATURE | {"operation": "project_out", "value": 1.0}, "/steering/0/value", ErrorCode.INVALID_REQUEST),
        (ALONG | {"operation": "project_out", "value": 1.0}, "/steering/0/value", ErrorCode.INVALID_REQUEST),
        (ALONG | {"operation": "clamp", "value": 1e16}, "/strengths/0", ErrorCode.INVALID_REQUEST),
        ({"type": "head", "layer": 0, "head": 99}, "/steering/0/head", ErrorCode.UNKNOWN_HEAD),
        ({"type": "head", "layer": 9, "head": 0}, "/steering/0/layer", ErrorCode.UNKNOWN_LAYER),
    ],
)
def test_what_cannot_be_steered_is_refused_with_a_pointer(
    laboratory: Laboratory, sae: Sae, steering: dict[str, Any], pointer: str, code: ErrorCode
) -> None:
    assert refusals(laboratory, sae, steering=[steering]) == {pointer: code}


@pytest.mark.parametrize(
    ("body", "pointer", "code"),
    [
        ({"strengths": [2.0]}, "/strengths", ErrorCode.INVALID_REQUEST),
        ({"steering": [ALONG], "strengths": [2.0, 2.0]}, "/strengths", ErrorCode.INVALID_REQUEST),
        ({"steering": [ALONG], "from_position": 40}, "/from_position", ErrorCode.UNKNOWN_POSITION),
        ({"stop": ["two words"]}, "/stop/0", ErrorCode.INVALID_ANSWER),
        ({"stop": [10_000]}, "/stop/0", ErrorCode.UNKNOWN_TOKEN),
        ({"prompts": ["x"] * 64, "max_new_tokens": 1_000}, "/max_new_tokens", ErrorCode.JOB_TOO_LARGE),
        ({"steering": [FEATURE, FEATURE | {"sae": "other"}]}, "/steering/1/sae", ErrorCode.SAE_MISMATCH),
    ],
)
def test_what_cannot_be_generated_is_refused_with_a_pointer(
    laboratory: Laboratory, sae: Sae, body: dict[str, Any], pointer: str, code: ErrorCode
) -> None:
    assert refusals(laboratory, sae, **body) == {pointer: code}


def test_a_feature_that_writes_nothing_cannot_be_projected_out(laboratory: Laboratory, sae: Sae) -> None:
    rows = sae.W_dec.clone()
    rows[7] = 0
    with pytest.raises(JobFailed, match="feature 7 writes nothing") as failed:
        generate(laboratory, Sae(**{**vars(sae), "W_dec": rows}), steering=[FEATURE | {"operation": "project_out"}])
    assert failed.value.code is ErrorCode.METHOD_FAILED


def test_a_strength_that_overflows_in_mean_norms_fails_the_job_alone(laboratory: Laboratory) -> None:
    with pytest.raises(JobFailed, match="overflows: steer less") as failed:
        generate(laboratory, steering=[ALONG], strengths=[9e14], unit="mean_norm")
    assert failed.value.code is ErrorCode.METHOD_FAILED
    assert generate(laboratory).prompts[0].unsteered.tokens
