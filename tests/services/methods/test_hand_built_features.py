"""An SAE whose features are the directions of tests/hand_built.py: what they do is known before it is computed."""

from typing import Any

import numpy as np
import pytest
import torch

from services.engine.engine import Engine
from services.methods.context import SaeInUse
from services.saes.sae import Relu, Sae
from tests.hand_built import D_MODEL, VOCABULARY, WORDS, Directions
from tests.services.methods.circuit import (
    CLEAN_LOGIT,
    EARLIER,
    EFFECT,
    END,
    EXAMPLE,
    THROUGH_SCORE,
    B,
    array,
    assert_only,
)
from tests.services.methods.conftest import Laboratory
from tests.services.methods.feature_reference import served
from tests.services.methods.saes import in_use

ANSWER, EARLIER_TOKEN, OTHER_TOKEN = (WORDS.index(word) for word in ("b", "a", "x"))
EVERY = [index for index in range(VOCABULARY) if index]


def reading(directions: Any, layer: int) -> SaeInUse:
    """One feature a token: how much of its direction there is behind a layer."""
    sae = Sae(
        W_enc=directions.T.float().contiguous(),
        b_enc=torch.zeros(VOCABULARY),
        W_dec=directions.float().contiguous(),
        b_dec=torch.zeros(D_MODEL),
        activation=Relu(),
        apply_b_dec_to_input=False,
        hook_name=f"blocks.{layer}.hook_resid_post",
    )
    return in_use(sae, "hand-built", layer=layer, bos=None)


@pytest.fixture
def answers() -> SaeInUse:
    """What the induction head has written."""
    return reading(Directions().answer, 1)


@pytest.fixture
def previous() -> SaeInUse:
    """What the previous-token head has written."""
    return reading(Directions().previous, 0)


def run(hand_built: Laboratory, engine: Engine, used: SaeInUse, kind: str, method: Any, **inputs: Any) -> Any:
    body = {"kind": kind, "model": "hand-built", "method": method | {"sae": "sae"}, **inputs}
    return Laboratory(engine, served(hand_built, used.facts)).run(body, used)


def test_the_answers_feature_has_all_of_the_logit(hand_built: Laboratory, engine: Engine, answers: SaeInUse) -> None:
    method = {"type": "direct_logit_attribution"}
    split = run(hand_built, engine, answers, "attribution", method, examples=[EXAMPLE]).attribution.split
    first, *rest = split.features
    assert first.index == ANSWER
    assert first.contribution.mean == pytest.approx(CLEAN_LOGIT, rel=1e-3)
    assert first.removed.mean == pytest.approx(-CLEAN_LOGIT, rel=1e-3)
    parts = (*(feature.contribution for feature in rest), split.other_features, split.error, split.b_dec)
    assert [part.mean for part in parts] == pytest.approx([0.0] * len(parts), abs=1e-3)


def test_ablating_the_answers_feature_destroys_it_and_no_other_does(
    hand_built: Laboratory, engine: Engine, answers: SaeInUse
) -> None:
    method = {"type": "feature_ablation", "features": EVERY, "by_position": True}
    result = run(hand_built, engine, answers, "ablation", method, examples=[EXAMPLE])
    assert_only(array(result.effects), {(EVERY.index(ANSWER), END): -CLEAN_LOGIT})


def test_patching_the_answers_feature_restores_it_and_the_error_nothing(
    hand_built: Laboratory, engine: Engine, answers: SaeInUse
) -> None:
    method = {"type": "feature_patching", "features": EVERY}
    result = run(hand_built, engine, answers, "patching", method, pairs=[EARLIER])
    assert_only(array(result.normalized), {(EVERY.index(ANSWER),): 1.0})
    np.testing.assert_allclose(array(result.estimated), array(result.effects), atol=2e-3 * EFFECT)
    assert float(array(result.parts.error.normalized)) == pytest.approx(0.0, abs=1e-3)
    assert float(array(result.parts.features.normalized)) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("mode", ["denoising", "noising"])
def test_a_feature_that_acts_through_attention_is_estimated_by_the_slope_and_checked_exactly(
    hand_built: Laboratory, engine: Engine, previous: SaeInUse, mode: str
) -> None:
    """The token before B, as B knows it, is what END looks for: a softmax lies between, and the estimate misses it."""
    chosen = [EARLIER_TOKEN, OTHER_TOKEN]
    method = {"type": "feature_patching", "features": chosen, "by_position": True, "mode": mode}
    result = run(hand_built, engine, previous, "patching", method, pairs=[EARLIER])
    sign = 1.0 if mode == "denoising" else -1.0
    assert_only(array(result.effects), {(0, B): sign * EFFECT})
    assert array(result.estimated)[0, B] == pytest.approx(THROUGH_SCORE[mode], rel=1e-2)
    assert result.check.largest_error == pytest.approx(abs(THROUGH_SCORE[mode] - sign * EFFECT), rel=1e-2)
