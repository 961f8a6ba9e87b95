"""Feature attribution against plain float64 forward and backward passes on a tiny model with a random SAE."""

import json
from typing import Any

import numpy as np
import pytest
import torch

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


@pytest.mark.parametrize(("site", "layer", "method"), CASES)
def test_estimates_by_position_are_checked_by_plain_forwards_changed_at_one_position(
    laboratory: Laboratory, engine: Engine, site: str, layer: int, method: dict[str, Any]
) -> None:
    used = made(site, layer)
    asked = {"top_k": 5, "by_position": True, "check": {"top_k": 4, "sampled": 6, "seed": 3}}
    outcome = run(laboratory, engine, used, **FIRST_ORDER, **method, **asked)
    plain, check = plainly(laboratory, used, outcome), outcome.check_by_position
    indices = [feature.index for feature in outcome.features]
    assert check is not None
    assert outcome.by_position is not None
    assert outcome.error_by_position is not None
    rows = np.vstack([outcome.by_position.array(), outcome.error_by_position.array()])  # type: ignore[union-attr]
    exact = []
    for cell in check.cells:
        row = len(indices) if cell.index is None else indices.index(cell.index)
        assert cell.estimated == pytest.approx(rows[row, int(cell.position)], rel=1e-5, abs=1e-7)
        whole = plain.error() if cell.index is None else plain.of_feature(cell.index)
        added = torch.zeros_like(whole)
        added[int(cell.position)] = whole[int(cell.position)]
        exact.append(plain.effect(added))
    np.testing.assert_allclose([cell.exact for cell in check.cells], exact, atol=1e-4)
    assert np.abs(exact).max() > 1e-2
    assert [cell.chosen for cell in check.cells] == ["top"] * 4 + ["sampled"] * 6
    largest = sorted(np.abs(rows).flatten(), reverse=True)[:4]
    np.testing.assert_allclose([abs(cell.estimated) for cell in check.cells[:4]], largest, rtol=1e-5)
    gaps = [abs(cell.estimated - cell.exact) for cell in check.cells]
    assert check.largest_error == pytest.approx(max(gaps))


def test_what_changes_nowhere_is_not_among_the_cells_checked(laboratory: Laboratory, engine: Engine) -> None:
    """The first tokens of a pair, which are the same, and features that fire in neither run."""
    used = made()
    asked = {"top_k": 3, "by_position": True, "check": {"top_k": 1_000, "sampled": 1_000}}
    outcome = run(laboratory, engine, used, **FIRST_ORDER, **asked)
    plain, check = plainly(laboratory, used, outcome), outcome.check_by_position
    assert check is not None
    indices = [feature.index for feature in outcome.features]
    want: set[tuple[int | None, int]]
    want = {(index, at) for index in indices for at in plain.changed[:, index].nonzero().flatten().tolist()}
    want |= {(None, at) for at in plain.whole.abs().sum(1).gt(1e-3).nonzero().flatten().tolist()}
    assert {(cell.index, cell.position) for cell in check.cells} == want
    assert 0 < len(want) < (len(indices) + 1) * len(plain.base)
    assert check.rank_correlation is not None


def test_cells_of_several_pairs_are_checked_by_the_means_of_both(laboratory: Laboratory, engine: Engine) -> None:
    """One position of two pairs of different lengths."""
    used = made()
    asked = {"positions": [-1], "by_position": True, "top_k": 2, "check": {"top_k": 3, "sampled": 0}}
    longer = PAIR | {name: f"Yes. {PAIR[name]}" for name in ("clean", "corrupted")}
    request = body(**FIRST_ORDER, **asked) | {"pairs": [PAIR, longer]}
    result = Laboratory(engine, served(laboratory, used.facts)).run(request, used)
    assert isinstance(result, AttributionResult)
    assert isinstance(result.attribution, FeatureAttributionOutcome)
    check = result.attribution.check_by_position
    assert check is not None
    for cell in check.cells:
        effects = []
        for ran in result.attribution.runs:
            assert ran.source_tokens is not None
            plain = Plain(laboratory, used, ran.tokens.ids, ran.source_tokens.ids)
            added = plain.error() if cell.index is None else plain.of_feature(cell.index)
            added[:-1] = 0
            effects.append(plain.effect(added))
        assert cell.position == -1
        assert cell.exact == pytest.approx(float(np.mean(effects)), abs=1e-4)


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
    "method",
    [
        FIRST_ORDER,
        {"steps": 4},
        ZERO | {"steps": 2},
        FIRST_ORDER | ZERO,
        {"positions": [-2, -1]},
        {"by_position": True},
        {"by_position": True, "top_k": 2, "check": {"top_k": 5, "sampled": 3}},
        FIRST_ORDER | ZERO | {"by_position": True, "positions": [-1, 2], "top_k": 3},
    ],
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
