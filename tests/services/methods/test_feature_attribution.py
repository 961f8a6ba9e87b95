"""Feature attribution against plain float64 forward and backward passes on a tiny model with a random SAE."""

import json
from typing import Any

import numpy as np
import pytest

from services.catalogue.resolve import Limits, resolve
from services.contracts.attribution import AttributionResult
from services.contracts.errors import ErrorCode, InvalidSpec
from services.contracts.feature_attribution import FeatureAttributionOutcome
from services.engine.engine import Engine
from services.methods.context import SaeInUse
from tests.brute_force import Reference
from tests.services.methods.attribution_patching import PAIR
from tests.services.methods.conftest import SPEC, Laboratory
from tests.services.methods.feature_reference import EXAMPLE, FEATURES, Plain, made, served

LAST = 2
ALL = {"top_k": FEATURES, "check": {"top_k": FEATURES, "sampled": 0}}
FIRST_ORDER = {"estimate": "gradient_x_activation"}
ZERO = {"source": "zero"}


def body(**method: Any) -> dict[str, Any]:
    inputs = {"examples": [EXAMPLE]} if method.get("source") == "zero" else {"pairs": [PAIR]}
    asked = {"type": "feature_attribution", "sae": "sae", **ALL, **method}
    return {"kind": "attribution", "model": "tiny-llama", "method": asked, **inputs}


def run(laboratory: Laboratory, engine: Engine, used: SaeInUse, **method: Any) -> FeatureAttributionOutcome:
    result = Laboratory(engine, served(laboratory, used.facts)).run(body(**method), used)
    assert isinstance(result, AttributionResult)
    assert isinstance(result.attribution, FeatureAttributionOutcome)
    return result.attribution


def plainly(laboratory: Laboratory, used: SaeInUse, outcome: FeatureAttributionOutcome) -> Plain:
    (ran,) = outcome.runs
    return Plain(laboratory, used, ran.tokens.ids, None if ran.source_tokens is None else ran.source_tokens.ids)


CASES = [
    ("resid_post", 1, {}),
    ("mlp_out", 0, {"mode": "noising"}),
    ("attn_out", 1, ZERO),
]


@pytest.mark.parametrize(("site", "layer", "method"), CASES)
def test_first_order_effects_are_the_change_times_the_gradient(
    laboratory: Laboratory, engine: Engine, site: str, layer: int, method: dict[str, Any]
) -> None:
    used = made(site, layer)
    outcome = run(laboratory, engine, used, **FIRST_ORDER, **method, by_position=True)
    plain = plainly(laboratory, used, outcome)
    gradient = plain.gradient()
    want = plain.changed * (gradient @ used.sae.W_dec.double().T)
    indices = [feature.index for feature in outcome.features]
    found = [feature.effect.mean for feature in outcome.features]
    scale = float(want.abs().max())
    np.testing.assert_allclose(found, want.sum(0)[indices], atol=1e-4 * scale)
    assert outcome.by_position is not None
    np.testing.assert_allclose(outcome.by_position.array(), want[:, indices].T, atol=1e-4 * scale)  # type: ignore[union-attr]
    assert [abs(value) for value in found] == sorted((abs(value) for value in found), reverse=True)
    assert outcome.error.estimated.mean == pytest.approx(float((plain.error() * gradient).sum()), abs=1e-4 * scale)


@pytest.mark.parametrize(("site", "layer", "method"), CASES)
def test_the_exact_check_is_a_plain_forward_with_the_activation_changed(
    laboratory: Laboratory, engine: Engine, site: str, layer: int, method: dict[str, Any]
) -> None:
    used = made(site, layer)
    outcome = run(laboratory, engine, used, **FIRST_ORDER, **method)
    plain = plainly(laboratory, used, outcome)
    for cell in outcome.check.cells[:6]:
        assert cell.exact == pytest.approx(plain.effect(plain.of_feature(cell.index)), abs=1e-4)
    assert outcome.error.exact.mean == pytest.approx(plain.effect(plain.error()), abs=1e-4)
    assert outcome.total.exact.mean == pytest.approx(plain.effect(plain.whole), abs=1e-4)
    if outcome.source == "other_run" and site == "resid_post":
        (ran,) = outcome.runs
        assert ran.source_metric is not None
        assert outcome.total.exact.mean == pytest.approx(ran.source_metric - ran.metric, abs=1e-4)


def test_features_and_error_add_up_to_the_gradient_times_the_whole_change(
    laboratory: Laboratory, engine: Engine
) -> None:
    used = made()
    outcome = run(laboratory, engine, used, **FIRST_ORDER)
    plain = plainly(laboratory, used, outcome)
    want = float((plain.whole * plain.gradient()).sum())
    assert outcome.total.estimated.mean == pytest.approx(want, rel=1e-4, abs=1e-4)
    parts = sum(feature.effect.mean for feature in outcome.features) + outcome.error.estimated.mean
    assert parts == pytest.approx(want, rel=1e-4, abs=1e-4)


def test_more_steps_of_integrated_gradients_leave_less_of_the_change_unexplained(
    laboratory: Laboratory, engine: Engine
) -> None:
    gaps = [abs(run(laboratory, engine, made(), steps=steps).total.gap.mean) for steps in (1, 40)]
    assert gaps[1] < 0.1 * gaps[0]


def test_tokens_over_the_norm_threshold_are_flagged_and_left_untouched(laboratory: Laboratory, engine: Engine) -> None:
    whole = plainly(laboratory, made(), run(laboratory, engine, made(), **FIRST_ORDER, **ZERO))
    used = made(norm_threshold=float(whole.x.norm(dim=1).median()))
    outcome = run(laboratory, engine, used, **FIRST_ORDER, **ZERO, by_position=True)
    plain = plainly(laboratory, used, outcome)
    (ran,) = outcome.runs
    assert ran.left_out == plain.left_out
    assert 0 < len(ran.left_out) < len(ran.tokens.ids)
    assert outcome.by_position is not None
    assert not outcome.by_position.array()[:, list(ran.left_out)].any()  # type: ignore[union-attr]
    assert outcome.total.exact.mean == pytest.approx(plain.effect(plain.whole), abs=1e-4)


def test_a_feature_that_carries_the_answer_comes_first(laboratory: Laboratory, engine: Engine) -> None:
    """Behind the last layer, the direction of one feature is answer minus foil in the unembedding."""
    used = made(layer=LAST)
    reference = Reference(laboratory.folder("tiny-llama"))
    read = laboratory.catalogue.tokenizer("tiny-llama").read
    answer, foil = (read(PAIR[name], bos=False).ids[0] for name in ("answer", "foil"))
    unembedding = reference.model.lm_head.weight.float()
    direction = (unembedding[answer] - unembedding[foil]).detach()
    W_dec, W_enc, b_enc = used.sae.W_dec.clone(), used.sae.W_enc.clone(), used.sae.b_enc.clone()
    W_dec[11] = 10 * direction / direction.norm()
    W_enc[:, 11], b_enc[11] = 0.0, 50.0
    carrying = made(layer=LAST, W_dec=W_dec, W_enc=W_enc, b_enc=b_enc)
    outcome = run(laboratory, engine, carrying, **FIRST_ORDER, **ZERO)
    assert outcome.features[0].index == 11
    assert outcome.features[0].effect.mean < 0, "without it the metric falls"


@pytest.mark.parametrize(
    "method", [FIRST_ORDER, {"steps": 4}, ZERO | {"steps": 2}, FIRST_ORDER | ZERO, {"positions": [-2, -1]}]
)
def test_a_job_is_billed_what_was_estimated(laboratory: Laboratory, engine: Engine, method: dict[str, Any]) -> None:
    """With an SAE whose features all change, so that what is checked is known beforehand."""
    used = made(sparse=False)
    catalogue = served(laboratory, used.facts)
    asked = body(**method)
    estimate = resolve(SPEC.validate_json(json.dumps(asked)), catalogue, Limits()).cost.token_layers
    billed = Laboratory(engine, catalogue).run(asked, used).usage.token_layers
    assert billed / estimate == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(
    ("facts", "method", "pointer", "code"),
    [
        ({"model": "tiny-gpt2"}, {}, "/method/sae", ErrorCode.SAE_MISMATCH),
        ({"d_model": 48}, {}, "/method/sae", ErrorCode.SAE_MISMATCH),
        ({"layer": 7}, {}, "/method/sae", ErrorCode.SAE_MISMATCH),
        ({"normalize_activations": "layer_norm"}, {}, "/method/sae", ErrorCode.SAE_MISMATCH),
        ({}, {"sae": "none"}, "/method/sae", ErrorCode.UNKNOWN_SAE),
        ({}, {"positions": [99]}, "/method/positions/0", ErrorCode.UNKNOWN_POSITION),
        ({}, {"positions": [-1, -1]}, "/method/positions", ErrorCode.UNKNOWN_POSITION),
        ({}, ZERO | {"positions": ["S2"]}, "/method/positions/0", ErrorCode.UNKNOWN_POSITION),
        ({}, {"quadrature": "trapezoid", "steps": 1}, "/method/steps", ErrorCode.INVALID_REQUEST),
    ],
)
def test_what_cannot_run_is_refused_with_a_pointer(
    laboratory: Laboratory, facts: dict[str, Any], method: dict[str, Any], pointer: str, code: ErrorCode
) -> None:
    catalogue = served(laboratory, made().facts.model_copy(update=facts))
    with pytest.raises(InvalidSpec) as refusal:
        resolve(SPEC.validate_json(json.dumps(body(**method))), catalogue, Limits())
    (violation,) = refusal.value.violations
    assert (violation.pointer, violation.code) == (pointer, code)
