"""Features of as many prompts as a job may have, each against a plain float64 model."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu  # type: ignore[import-untyped]

from services.contracts.feature_contrast import MAX_PROMPTS
from services.engine.engine import Engine
from services.saes.sae import Relu, Sae
from tests.brute_force import Reference
from tests.services.methods.conftest import Laboratory
from tests.services.methods.test_features import FEATURES, LAYER, run, sae

__all__ = ["sae"]

TOP_K = 3
HALF = MAX_PROMPTS // 2
GENERATOR = np.random.default_rng(0)
PROMPTS: list[dict[str, Any]] = [
    {"type": "tokens", "tokens": GENERATOR.integers(*range_, size=GENERATOR.integers(1, 6)).tolist()}
    for range_ in ((5, 60), (40, 120))
    for _ in range(HALF)
]


@pytest.fixture(scope="module")
def used(sae: Sae) -> Sae:
    """Features whose activations are continuous, so that rounding decides on none of them."""
    return Sae(**{**vars(sae), "activation": Relu()})


@pytest.fixture(scope="module")
def largest(laboratory: Laboratory, used: Sae) -> np.ndarray[Any, np.dtype[np.float64]]:
    """[prompt, feature], over each prompt's tokens."""
    reference, place = Reference(laboratory.folder("tiny-llama")), ("resid_post", LAYER)
    found = []
    for prompt in PROMPTS:
        x = reference.activations(prompt["tokens"], [place])[place]
        pre = (x - used.b_dec.double()) @ used.W_enc.double() + used.b_enc.double()
        found.append(pre.clamp(min=0).amax(dim=0))
    return torch.stack(found).numpy().round(8)  # prompts that begin alike are equal there, but for rounding


def test_a_job_reports_the_strongest_features_of_a_thousand_prompts(
    laboratory: Laboratory, engine: Engine, used: Sae, largest: Any
) -> None:
    result = run(laboratory, engine, used, prompts=PROMPTS, top_k=TOP_K, per_token=False, promoted_logits=0)
    assert len(result.prompts) == 1_000
    for prompt, tokens, want in zip(result.prompts, PROMPTS, largest, strict=True):
        assert prompt.tokens.ids == tuple(tokens["tokens"])
        values = [feature.max_activation for feature in prompt.top]
        np.testing.assert_allclose(values, np.sort(want)[::-1][:TOP_K], atol=1e-4)
        np.testing.assert_allclose(values, want[[feature.index for feature in prompt.top]], atol=1e-4)


def test_five_hundred_prompts_are_contrasted_with_five_hundred(
    laboratory: Laboratory, engine: Engine, used: Sae, largest: Any
) -> None:
    first, second = largest[:HALF], largest[HALF:]
    asked: dict[str, Any] = {"prompts": PROMPTS[:HALF], "contrast": {"baseline": PROMPTS[HALF:]}, "top_k": 100}
    found = run(laboratory, engine, used, **asked, promoted_logits=0).contrast
    assert found is not None
    assert (found.prompts, found.baseline_prompts) == (HALF, HALF)
    assert found.tested == len(found.features) == FEATURES
    for feature in found.features:
        ours, theirs = first[:, feature.index], second[:, feature.index]
        test = mannwhitneyu(ours, theirs, method="asymptotic")
        assert feature.mean == pytest.approx(ours.mean(), abs=1e-4)
        assert feature.baseline_mean == pytest.approx(theirs.mean(), abs=1e-4)
        assert feature.auroc == pytest.approx(test.statistic / HALF**2, abs=1e-4)
        assert feature.p_value == pytest.approx(test.pvalue, rel=0.02)
    assert found.features[0].q_value < 1e-6, "the sets are of other tokens"
