"""Feature attribution against plain float64 forward and backward passes on a tiny model with a random SAE."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from services.catalogue.catalogue import Catalogue
from services.catalogue.resolve import Limits, resolve
from services.contracts.attribution import AttributionResult
from services.contracts.errors import ErrorCode, InvalidSpec
from services.contracts.feature_attribution import FeatureAttributionOutcome
from services.contracts.sae import SaeFacts
from services.engine.engine import Engine
from services.methods.context import SaeInUse
from services.saes.sae import Relu, Sae, TopK
from tests.brute_force import Reference
from tests.services.methods.attribution_patching import PAIR
from tests.services.methods.conftest import SPEC, Laboratory
from tests.services.methods.saes import in_use

FEATURES, D_MODEL, LAST = 64, 32, 2
ALL = {"top_k": FEATURES, "check": {"top_k": FEATURES, "sampled": 0}}
FIRST_ORDER = {"estimate": "gradient_x_activation"}
EXAMPLE = {key: value for key, value in PAIR.items() if key in ("answer", "foil")} | {"prompt": PAIR["clean"]}
ZERO = {"source": "zero"}


def made(
    site: str = "resid_post", layer: int = 1, *, sparse: bool = True, width: int = D_MODEL, **changes: Any
) -> SaeInUse:
    """A random SAE; without `sparse`, all of its features fire on everything."""
    generator = torch.Generator().manual_seed(5)
    weights: dict[str, Any] = {
        "W_enc": torch.randn(width, FEATURES, generator=generator) / width**0.5,
        "b_enc": torch.randn(FEATURES, generator=generator) + (0 if sparse else 10_000),
        "W_dec": torch.randn(FEATURES, width, generator=generator) / width**0.5,
        "b_dec": torch.randn(width, generator=generator),
    }
    rest: dict[str, Any] = {
        "activation": TopK(8) if sparse else Relu(),
        "apply_b_dec_to_input": True,
        "hook_name": f"blocks.{layer}.hook_{site}",
    }
    sae = Sae(**{**weights, **rest, **changes})
    return in_use(sae, site=site, layer=layer)


def body(**method: Any) -> dict[str, Any]:
    inputs = {"examples": [EXAMPLE]} if method.get("source") == "zero" else {"pairs": [PAIR]}
    asked = {"type": "feature_attribution", "sae": "sae", **ALL, **method}
    return {"kind": "attribution", "model": "tiny-llama", "method": asked, **inputs}


def served(laboratory: Laboratory, facts: SaeFacts) -> Catalogue:
    return Catalogue(laboratory.catalogue.home, laboratory.catalogue.models, {"sae": facts})


def run(laboratory: Laboratory, engine: Engine, used: SaeInUse, **method: Any) -> FeatureAttributionOutcome:
    result = Laboratory(engine, served(laboratory, used.facts)).run(body(**method), used)
    assert isinstance(result, AttributionResult)
    assert isinstance(result.attribution, FeatureAttributionOutcome)
    return result.attribution


class Plain:
    """The same change worked out in float64, with nothing of lensd."""

    def __init__(self, laboratory: Laboratory, used: SaeInUse, outcome: FeatureAttributionOutcome) -> None:
        self.reference, self.sae = Reference(laboratory.folder("tiny-llama")), used.sae
        self.place = (used.facts.site.value, used.facts.layer)
        ran = outcome.runs[0]
        self.base = ran.tokens.ids
        self.x = self._at_site(self.base)
        self.f = self._features(self.x)
        if ran.source_tokens is None:
            self.other, source = self.sae.b_dec.double().expand_as(self.x), torch.zeros_like(self.f)
        else:
            self.other = self._at_site(ran.source_tokens.ids)
            source = self._features(self.other)
        limit = self.sae.norm_threshold or torch.inf
        kept = self.x.norm(dim=1) <= limit
        if ran.source_tokens is not None:
            kept &= self.other.norm(dim=1) <= limit
        self.changed = (source - self.f) * kept[:, None]
        self.whole = (self.other - self.x) * kept[:, None]
        self.left_out = tuple((~kept).nonzero().flatten().tolist())
        read = laboratory.catalogue.tokenizer("tiny-llama").read
        self.answer, self.foil = (read(PAIR[name], bos=False).ids[0] for name in ("answer", "foil"))

    def _at_site(self, tokens: Any) -> Tensor:
        taken: Tensor = self.reference.activations(tokens, [self.place])[self.place]
        return taken

    def _features(self, x: Tensor) -> Tensor:
        pre = (x - self.sae.b_dec.double()) @ self.sae.W_enc.double() + self.sae.b_enc.double()
        if self.sae.k is None:
            return pre.relu()
        least = pre.sort(dim=1, descending=True).values[:, self.sae.k - 1 :][:, :1]
        return torch.where(pre >= least, pre.relu(), 0.0)

    def metric(self, logits: Tensor) -> Tensor:
        difference: Tensor = logits[-1, self.answer] - logits[-1, self.foil]
        return difference

    def effect(self, added: Tensor) -> float:
        """m with `added` at the site, minus m."""
        patched = self.reference.logits(self.base, {self.place: lambda x: x + added})
        return float(self.metric(patched) - self.metric(self.reference.logits(self.base)))

    def of_feature(self, index: int) -> Tensor:
        added: Tensor = self.changed[:, index, None] * self.sae.W_dec[index].double()
        return added

    def error(self) -> Tensor:
        left: Tensor = self.whole - self.changed @ self.sae.W_dec.double()
        return left

    def gradient(self) -> Tensor:
        return self.reference.gradients(self.base, [self.place], self.metric)[self.place]


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
    plain = Plain(laboratory, used, outcome)
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
    plain = Plain(laboratory, used, outcome)
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
    plain = Plain(laboratory, used, outcome)
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
    whole = Plain(laboratory, made(), run(laboratory, engine, made(), **FIRST_ORDER, **ZERO))
    used = made(norm_threshold=float(whole.x.norm(dim=1).median()))
    outcome = run(laboratory, engine, used, **FIRST_ORDER, **ZERO, by_position=True)
    plain = Plain(laboratory, used, outcome)
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
