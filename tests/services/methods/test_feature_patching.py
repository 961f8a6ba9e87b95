"""Feature patching against plain float64 forward and backward passes on a tiny model with a random SAE."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from services.catalogue.catalogue import sae_folder
from services.catalogue.resolve import Limits, resolve
from services.contracts.errors import ErrorCode, InvalidSpec
from services.contracts.feature_patching import FeaturePatchingResult
from services.contracts.tensor import Statistic
from services.engine.engine import Engine
from services.methods.context import SaeInUse
from services.saes.bundle import load_sae
from tests.brute_force import Reference
from tests.conftest import MODEL, SAE
from tests.services.methods.attribution_patching import PAIR, array
from tests.services.methods.conftest import SPEC, Laboratory
from tests.services.methods.feature_reference import FEATURES, Plain, made, served

OTHER_PAIR = PAIR | {
    "clean": "When Mary and John went to the shops, Mary gave the bag to",
    "corrupted": "When Mary and John went to the shops, John gave the bag to",
    "answer": " John",
    "foil": " Mary",
}
SHORT_PAIR = {"clean": "John gave", "corrupted": "Mary gave", "answer": " Mary", "foil": " John"}
KL = {"type": "kl_divergence"}
CASES = [
    ("resid_post", 1, {}),
    ("mlp_out", 0, {"mode": "noising"}),
    ("attn_out", 1, {"positions": [-2, -6]}),
    ("z", 1, {}),
]
Z_WIDTH = 48


def of_site(site: str, layer: int) -> SaeInUse:
    return made(site, layer, width=Z_WIDTH) if site == "z" else made(site, layer)


def body(pairs: tuple[dict[str, Any], ...] = (PAIR,), *, metric: Any = None, **method: Any) -> dict[str, Any]:
    asked = {"type": "feature_patching", "sae": "sae", "top_k": FEATURES, **method}
    rest = {} if metric is None else {"metric": metric}
    return {"kind": "patching", "model": "tiny-llama", "method": asked, "pairs": list(pairs), **rest}


def run(laboratory: Laboratory, engine: Engine, used: SaeInUse, asked: dict[str, Any]) -> FeaturePatchingResult:
    result = Laboratory(engine, served(laboratory, used.facts)).run(asked, used)
    assert isinstance(result, FeaturePatchingResult)
    return result


def plainly(laboratory: Laboratory, used: SaeInUse, result: FeaturePatchingResult) -> Plain:
    tokens = result.pairs[0].tokens
    base, source = (tokens.clean.ids, tokens.corrupted.ids)[:: 1 if result.mode == "noising" else -1]
    return Plain(laboratory, used, base, source)


def at(plain: Plain, positions: Any, added: Any) -> Any:
    """The change at these positions alone; everywhere for None."""
    kept = torch.zeros_like(added)
    places = range(len(added)) if positions is None else [position % len(added) for position in positions]
    kept[list(places)] = added[list(places)]
    return kept


@pytest.mark.parametrize(("site", "layer", "method"), CASES)
def test_an_effect_is_a_plain_forward_with_the_features_direction_added(
    laboratory: Laboratory, engine: Engine, site: str, layer: int, method: dict[str, Any]
) -> None:
    used = of_site(site, layer)
    result = run(laboratory, engine, used, body(**method))
    plain, positions = plainly(laboratory, used, result), method.get("positions")
    effects = array(result.effects)
    for place, feature in list(enumerate(result.features))[:8]:
        want = plain.effect(at(plain, positions, plain.of_feature(feature.index)))
        assert effects[place] == pytest.approx(want, abs=1e-4)
    features = plain.changed @ used.sae.W_dec.double()
    for part, added in (("features", features), ("error", plain.error()), ("both", plain.whole)):
        found = array(getattr(result.parts, part).effects)
        assert float(found) == pytest.approx(plain.effect(at(plain, positions, added)), abs=1e-4)


@pytest.mark.parametrize(("site", "layer", "method"), CASES)
def test_an_estimate_is_the_change_times_the_gradient(
    laboratory: Laboratory, engine: Engine, site: str, layer: int, method: dict[str, Any]
) -> None:
    used = of_site(site, layer)
    result = run(laboratory, engine, used, body(**method))
    plain = plainly(laboratory, used, result)
    gradient = at(plain, method.get("positions"), plain.gradient())
    want = (plain.changed * (gradient @ used.sae.W_dec.double().T)).sum(0)
    found = array(result.estimated)
    indices = [feature.index for feature in result.features]
    scale = float(want.abs().max())
    np.testing.assert_allclose(found, want[indices], atol=1e-4 * scale)
    assert [abs(value) for value in found] == sorted((abs(value) for value in found), reverse=True)
    both = array(result.parts.both.estimated)
    assert float(both) == pytest.approx(float((plain.whole * gradient).sum()), abs=1e-4 * scale)
    assert float(both) == pytest.approx(
        float(array(result.parts.features.estimated) + array(result.parts.error.estimated)), abs=1e-5
    )
    assert result.check is not None
    assert result.check.largest_error == pytest.approx(float(np.abs(found - array(result.effects)).max()), abs=1e-6)


@pytest.mark.parametrize("site", ["resid_post", "z"])
def test_by_position_a_cell_changes_that_position_alone(laboratory: Laboratory, engine: Engine, site: str) -> None:
    used = of_site(site, 1)
    result = run(laboratory, engine, used, body(by_position=True, top_k=6))
    plain = plainly(laboratory, used, result)
    assert result.positions == tuple(range(len(plain.base)))
    effects, estimates = array(result.effects), array(result.estimated)
    assert effects.shape == estimates.shape == (6, len(plain.base))
    gradient = plain.gradient()
    for place, feature in enumerate(result.features):
        added = plain.of_feature(feature.index)
        want = [plain.effect(at(plain, [position], added)) for position in range(len(plain.base))]
        np.testing.assert_allclose(effects[place], want, atol=1e-4)
        np.testing.assert_allclose(estimates[place], (added * gradient).sum(1), atol=1e-4)
    both = [plain.effect(at(plain, [position], plain.whole)) for position in range(len(plain.base))]
    np.testing.assert_allclose(array(result.parts.both.effects), both, atol=1e-4)


@pytest.mark.parametrize("mode", ["denoising", "noising"])
def test_all_features_and_the_error_together_are_activation_patching_of_the_site(
    laboratory: Laboratory, engine: Engine, mode: str
) -> None:
    used = made("mlp_out", 1)
    result = run(laboratory, engine, used, body(by_position=True, top_k=1, mode=mode))
    swept = {"type": "activation_patching", "site": "mlp_out", "layers": [1], "mode": mode}
    sweep: Any = laboratory.run({**body(), "method": swept, "bos": True})
    np.testing.assert_allclose(array(result.parts.both.effects), array(sweep.effects)[0], atol=1e-5)
    np.testing.assert_allclose(array(result.parts.both.normalized), array(sweep.normalized)[0], atol=1e-5)


def test_replacing_the_whole_residual_stream_restores_all_of_the_difference(
    laboratory: Laboratory, engine: Engine
) -> None:
    result = run(laboratory, engine, made(), body())
    assert float(array(result.parts.both.normalized)) == pytest.approx(1.0, abs=1e-4)


def test_features_given_come_first_and_are_not_chosen_again(laboratory: Laboratory, engine: Engine) -> None:
    used = made()
    ranking = [feature.index for feature in run(laboratory, engine, used, body()).features]
    given = [ranking[4], ranking[0]]
    result = run(laboratory, engine, used, body(features=given, top_k=2))
    assert [feature.index for feature in result.features] == [*given, ranking[1], ranking[2]]
    assert [feature.chosen for feature in result.features] == ["given", "given", "top", "top"]
    alone = run(laboratory, engine, used, body(features=given, top_k=None))
    assert [feature.index for feature in alone.features] == given
    np.testing.assert_allclose(array(alone.effects), array(result.effects)[:2], atol=1e-6)


def test_features_come_with_the_tokens_that_they_promote(laboratory: Laboratory, engine: Engine) -> None:
    used = made()
    result = run(laboratory, engine, used, body(features=[4, 2], top_k=0, promoted_logits=3))
    model = Reference(laboratory.folder("tiny-llama")).model
    for effect, index in zip(result.promoted_logits, (4, 2), strict=True):
        logits = model.get_output_embeddings().weight @ (used.sae.W_dec[index].double() * model.model.norm.weight)
        assert effect.index == index
        assert [token.token_id for token in effect.promoted] == logits.topk(3).indices.tolist()
    assert run(laboratory, engine, used, body(features=[4], top_k=0, promoted_logits=0)).promoted_logits == ()


def test_a_feature_that_does_not_fire_has_no_effect(laboratory: Laboratory, engine: Engine) -> None:
    used = made()
    plain = plainly(laboratory, used, run(laboratory, engine, used, body()))
    silent = int((plain.changed.abs().sum(0) == 0).nonzero()[0])
    result = run(laboratory, engine, used, body(features=[silent], top_k=0))
    assert (float(array(result.effects)[0]), float(array(result.estimated)[0])) == (0.0, 0.0)


def test_tokens_over_the_norm_threshold_are_flagged_and_left_untouched(laboratory: Laboratory, engine: Engine) -> None:
    whole = plainly(laboratory, made(), run(laboratory, engine, made(), body()))
    used = made(norm_threshold=float(whole.x.norm(dim=1).median()))
    result = run(laboratory, engine, used, body(by_position=True))
    plain = plainly(laboratory, used, result)
    (pair,) = result.pairs
    first = min(pair.differing_positions)
    assert pair.left_out == tuple(position for position in plain.left_out if position >= first)
    assert 0 < len(pair.left_out) < len(plain.base) - first
    for effects in (result.effects, result.parts.both.effects, result.parts.error.effects):
        assert not array(effects)[..., list(pair.left_out)].any()
    together = run(laboratory, engine, used, body())
    assert float(array(together.parts.both.effects)) == pytest.approx(plain.effect(plain.whole), abs=1e-4)
    assert len(pair.left_out) > 1
    assert together.warnings == (f"{len(pair.left_out)} tokens are over the SAE's norm threshold: left untouched",)


def test_many_pairs_are_a_statistic_of_each_ones_own(laboratory: Laboratory, engine: Engine) -> None:
    used = made()
    one = run(laboratory, engine, used, body(features=[1, 2, 3], top_k=0))
    asked = body((PAIR, OTHER_PAIR), features=[1, 2, 3], top_k=0) | {"per_pair": True}
    result = run(laboratory, engine, used, asked)
    own = np.stack([array(pair.effects) for pair in result.pairs])
    np.testing.assert_allclose(own[0], array(one.effects), atol=1e-5)
    assert isinstance(result.effects, Statistic)
    np.testing.assert_allclose(array(result.effects.mean), own.mean(0), atol=1e-6)
    differences = [pair.baselines.clean - pair.baselines.corrupted for pair in result.pairs]
    assert isinstance(result.normalized, Statistic)
    np.testing.assert_allclose(array(result.normalized.mean), own.mean(0) / np.mean(differences), rtol=1e-4)
    assert all(pair.estimated is not None for pair in result.pairs)


def test_a_pair_without_a_difference_has_no_effects_and_a_warning(laboratory: Laboratory, engine: Engine) -> None:
    result = run(laboratory, engine, made(), body((PAIR | {"corrupted": PAIR["clean"]},), features=[3]))
    assert not array(result.effects).any()
    assert np.isnan(array(result.normalized)).all()
    assert [warning for warning in result.warnings if "normalized is null" in warning] == list(result.warnings)
    assert result.changed == 0


@pytest.mark.parametrize("mode", ["denoising", "noising"])
def test_a_divergence_has_exact_effects_and_at_its_clean_run_no_estimates(
    laboratory: Laboratory, engine: Engine, mode: str
) -> None:
    used = made()
    asked = body(features=[1, 2, 3], top_k=0, mode=mode, metric=KL)
    result = run(laboratory, engine, used, asked)
    plain = plainly(laboratory, used, result)
    clean = plain.reference.logits(result.pairs[0].tokens.clean.ids)[-1].log_softmax(-1)

    def divergence(added: Any) -> float:
        changed = plain.reference.logits(plain.base, {plain.place: lambda x: x + added})[-1].log_softmax(-1)
        return float((clean.exp() * (clean - changed)).sum())

    nothing = divergence(torch.zeros_like(plain.x))
    want = [divergence(plain.of_feature(index)) - nothing for index in (1, 2, 3)]
    np.testing.assert_allclose(array(result.effects), want, atol=1e-5)
    assert (result.estimated is None) == (result.check is None) == (mode == "noising")


@pytest.mark.parametrize(
    "asked",
    [
        body(),
        body((PAIR, OTHER_PAIR), mode="noising", features=[1, 2]),
        body(by_position=True, top_k=4),
        body((PAIR, OTHER_PAIR), positions=[-3, -1], by_position=True, top_k=4),
        body((PAIR, SHORT_PAIR), positions=[-2, -1], metric={"type": "cross_entropy"}),
        body(metric=KL),
        body(metric=KL, features=[1, 2], mode="noising", top_k=None),
        body((PAIR, PAIR | {"corrupted": PAIR["clean"]})),
    ],
)
@pytest.mark.parametrize("layer", [1, 2])
def test_a_job_is_billed_what_was_estimated(
    laboratory: Laboratory, engine: Engine, layer: int, asked: dict[str, Any]
) -> None:
    """With an SAE whose features all change, so that what is run is known beforehand."""
    used = made(layer=layer, sparse=False)
    catalogue = served(laboratory, used.facts)
    estimate = resolve(SPEC.validate_json(json.dumps(asked)), catalogue, Limits()).cost.token_layers
    billed = Laboratory(engine, catalogue).run(asked, used).usage.token_layers
    assert billed / estimate == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(
    ("facts", "method", "pointer", "code"),
    [
        ({"model": "tiny-gpt2"}, {}, "/method/sae", ErrorCode.SAE_MISMATCH),
        ({"d_model": 48}, {}, "/method/sae", ErrorCode.SAE_MISMATCH),
        ({"normalize_activations": "layer_norm"}, {}, "/method/sae", ErrorCode.SAE_MISMATCH),
        ({}, {"sae": "none"}, "/method/sae", ErrorCode.UNKNOWN_SAE),
        ({}, {"features": [3, FEATURES]}, "/method/features/1", ErrorCode.UNKNOWN_FEATURE),
        ({}, {"features": [3, 4, 3]}, "/method/features/2", ErrorCode.INVALID_REQUEST),
        ({}, {"top_k": 0}, "/method/features", ErrorCode.INVALID_REQUEST),
        ({}, {"positions": [99]}, "/method/positions/0", ErrorCode.UNKNOWN_POSITION),
        ({}, {"positions": ["S2"]}, "/method/positions/0", ErrorCode.UNKNOWN_POSITION),
        ({}, {"positions": [-1, -1]}, "/method/positions", ErrorCode.UNKNOWN_POSITION),
        ({}, {"mode": "noising", "metric": KL}, "/metric/type", ErrorCode.UNSUPPORTED_METRIC),
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


def test_pairs_of_different_lengths_are_not_patched_by_position(laboratory: Laboratory) -> None:
    asked = body((PAIR, SHORT_PAIR), by_position=True)
    with pytest.raises(InvalidSpec) as refusal:
        resolve(SPEC.validate_json(json.dumps(asked)), served(laboratory, made().facts), Limits())
    assert [violation.code for violation in refusal.value.violations] == [ErrorCode.UNEQUAL_LENGTHS]


def test_features_of_the_shipped_sae_restore_most_of_the_ioi_answer(smollm2: Laboratory) -> None:
    """Behind layer 15 the second name still decides, and the SAE's features hold most of what it says."""
    sae = load_sae(sae_folder(smollm2.catalogue.home, SAE))
    asked = body(sae=SAE, top_k=5) | {"model": MODEL}
    result: Any = smollm2.run(asked, SaeInUse(sae, smollm2.catalogue.sae(SAE)))
    (pair,) = result.pairs
    assert pair.baselines.clean == pytest.approx(4.62, abs=0.02), "with BOS, as the SAE was trained"
    assert pair.baselines.corrupted == pytest.approx(-3.67, abs=0.02)
    assert float(array(result.parts.both.normalized)) == pytest.approx(1.0, abs=1e-3)
    assert float(array(result.parts.features.normalized)) > 0.8
    assert float(array(result.parts.error.normalized)) < 0.15
