"""Features jobs against activations of a plain float64 model and the SAE's arithmetic written out by hand."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from services.catalogue.catalogue import Catalogue
from services.contracts.features import FeaturesResult, PromptFeatures
from services.contracts.tensor import InlineTensor
from services.engine.engine import Engine
from services.saes.sae import Sae, TopK
from tests.brute_force import Reference
from tests.services.methods.conftest import Laboratory
from tests.services.methods.saes import in_use

FEATURES, K, LAYER = 64, 4, 1
PROMPTS = ["When John and Mary went to the shops", "The Eiffel Tower is in Paris"]
MODELS = ("tiny-gpt2", "tiny-llama", "tiny-gpt-neox", "tiny-gemma2")


@dataclass
class Expected:
    """One prompt's features, computed from scratch."""

    x: Tensor
    features: Tensor
    counted: Tensor


@pytest.fixture(scope="module")
def sae() -> Sae:
    generator = torch.Generator().manual_seed(3)
    weights = {
        "W_enc": torch.randn(32, FEATURES, generator=generator),
        "b_enc": torch.randn(FEATURES, generator=generator),
        "W_dec": torch.randn(FEATURES, 32, generator=generator) / 32**0.5,
        "b_dec": torch.randn(32, generator=generator),
    }
    return Sae(
        **weights,
        activation=TopK(K),
        apply_b_dec_to_input=True,
        hook_name=f"blocks.{LAYER}.hook_resid_post",
        mean_activation=torch.randn(32, generator=generator),
    )


def run(laboratory: Laboratory, engine: Engine, sae: Sae, model: str = "tiny-llama", **changes: Any) -> FeaturesResult:
    used = in_use(sae, model, layer=LAYER)
    served = Catalogue(laboratory.catalogue.home, laboratory.catalogue.models, {"sae": used.facts})
    body = {"kind": "features", "model": model, "sae": "sae", "prompts": PROMPTS, **changes}
    result = Laboratory(engine, served).run(body, used)
    assert isinstance(result, FeaturesResult)
    return result


def expected(laboratory: Laboratory, sae: Sae, prompt: PromptFeatures, model: str = "tiny-llama") -> Expected:
    place = ("resid_post", LAYER)
    x = Reference(laboratory.folder(model)).activations(prompt.tokens.ids, [place])[place]
    pre = (x - sae.b_dec.double()) @ sae.W_enc.double() + sae.b_enc.double()
    threshold = pre.sort(dim=1, descending=True).values[:, K - 1 : K]
    counted = (
        torch.ones(len(x), dtype=torch.bool) if sae.norm_threshold is None else x.norm(dim=1) <= sae.norm_threshold
    )
    features = torch.where(pre >= threshold, pre.clamp(min=0), 0.0) * counted[:, None]
    return Expected(x, features, counted)


@pytest.mark.parametrize("model", MODELS)
def test_features_per_token_and_over_the_prompt_equal_the_hand_computed_ones(
    laboratory: Laboratory, engine: Engine, sae: Sae, model: str
) -> None:
    result = run(laboratory, engine, sae, model)
    for prompt in result.prompts:
        assert prompt.tokens.ids[0] == 0, "this SAE's BOS rule holds"
        want = expected(laboratory, sae, prompt, model).features
        for token in prompt.per_token:
            row = want[token.position]
            order = row.argsort(descending=True)[: int((row > 0).sum())]
            assert [feature.index for feature in token.features] == order.tolist()
            np.testing.assert_allclose([feature.activation for feature in token.features], row[order], atol=1e-4)
        largest, where = want.max(dim=0)
        best = largest.argsort(descending=True)[:10]
        assert [feature.index for feature in prompt.top] == best[largest[best] > 0].tolist()
        for feature in prompt.top:
            assert feature.max_activation == pytest.approx(float(largest[feature.index]), abs=1e-4)
            assert feature.max_position == int(where[feature.index])
            assert feature.mean_activation == pytest.approx(float(want[:, feature.index].mean()), abs=1e-4)
            assert feature.active_tokens == int((want[:, feature.index] > 0).sum())


def test_chosen_features_come_as_a_tensor_and_alone(laboratory: Laboratory, engine: Engine, sae: Sae) -> None:
    chosen = [40, 3, 17]
    result = run(laboratory, engine, sae, features=chosen)
    for prompt in result.prompts:
        assert isinstance(prompt.activations, InlineTensor)
        assert prompt.activations.dims == ("position", "feature")
        want = expected(laboratory, sae, prompt).features[:, chosen]
        np.testing.assert_allclose(prompt.activations.array(), want, atol=1e-4)
        assert {feature.index for feature in prompt.top} <= set(chosen)
        assert {feature.index for token in prompt.per_token for feature in token.features} <= set(chosen)


def test_reconstruction_is_measured_against_the_saes_own_mean(laboratory: Laboratory, engine: Engine, sae: Sae) -> None:
    (first, _) = run(laboratory, engine, sae).prompts
    want = expected(laboratory, sae, first)
    error = want.x - want.features @ sae.W_dec.double() - sae.b_dec.double()
    assert sae.mean_activation is not None
    variance = (want.x - sae.mean_activation.double()).square().sum()
    found = first.reconstruction
    assert found is not None
    assert found.reference == "sae_mean"
    assert found.tokens == len(want.x)
    assert found.mse == pytest.approx(float(error.square().mean()), rel=1e-4)
    assert found.explained_variance == pytest.approx(float(1 - error.square().sum() / variance), abs=1e-4)
    assert found.mean_l0 == pytest.approx(float((want.features > 0).sum() / len(want.x)))


def test_tokens_over_the_norm_threshold_are_flagged_and_left_out(
    laboratory: Laboratory, engine: Engine, sae: Sae
) -> None:
    (plain, _) = run(laboratory, engine, sae).prompts
    norms = expected(laboratory, sae, plain).x.norm(dim=1)
    limited = Sae(**{**vars(sae), "norm_threshold": float(norms.median())})
    (prompt, _) = run(laboratory, engine, limited).prompts
    want = expected(laboratory, limited, prompt)
    flagged = [token.over_norm for token in prompt.per_token]
    assert flagged == (~want.counted).tolist()
    assert any(flagged)
    assert not all(flagged)
    assert all(token.features == () for token in prompt.per_token if token.over_norm)
    assert prompt.over_norm == tuple(index for index, over in enumerate(flagged) if over)
    assert prompt.reconstruction is not None
    assert prompt.reconstruction.tokens == int(want.counted.sum())


def test_promoted_tokens_are_those_that_the_decoder_direction_raises(
    laboratory: Laboratory, engine: Engine, sae: Sae
) -> None:
    result = run(laboratory, engine, sae, promoted_logits=3)
    model = Reference(laboratory.folder("tiny-llama")).model
    shown = {feature.index for prompt in result.prompts for feature in prompt.top}
    assert {effect.index for effect in result.effects} == shown
    for effect in result.effects:
        with torch.no_grad():
            logits = model.lm_head.weight @ (sae.W_dec[effect.index].double() * model.model.norm.weight)
        best, worst = logits.topk(3), logits.topk(3, largest=False)
        assert [token.token_id for token in effect.promoted] == best.indices.tolist()
        assert [token.token_id for token in effect.suppressed] == worst.indices.tolist()
        np.testing.assert_allclose([token.logit for token in effect.promoted], best.values, atol=1e-4)
    assert run(laboratory, engine, sae, promoted_logits=0).effects == ()


@pytest.mark.parametrize(("normalization", "scaled"), [("none", False), ("layer_norm", True)])
def test_promoted_logits_of_an_sae_that_scales_each_token_are_flagged(
    laboratory: Laboratory, engine: Engine, sae: Sae, normalization: str, scaled: bool
) -> None:
    result = run(laboratory, engine, Sae(**{**vars(sae), "normalize_activations": normalization}))
    assert result.effects
    assert result.effects_per_token_scale == scaled


def test_a_prompt_of_left_out_tokens_alone_has_no_reconstruction(
    laboratory: Laboratory, engine: Engine, sae: Sae
) -> None:
    nothing = Sae(**{**vars(sae), "norm_threshold": 1e-6})
    (prompt, _) = run(laboratory, engine, nothing).prompts
    assert prompt.reconstruction is not None
    assert prompt.reconstruction.tokens == 0
    assert prompt.reconstruction.explained_variance is None
    assert prompt.top == ()


def test_chosen_features_are_the_same_with_a_reconstruction_and_without(
    laboratory: Laboratory, engine: Engine, sae: Sae
) -> None:
    alone = run(laboratory, engine, sae, features=[40, 3, 17])
    among_all = run(laboratory, engine, sae, features=[40, 3, 17], reconstruction=True)
    for one, other in zip(alone.prompts, among_all.prompts, strict=True):
        assert one.reconstruction is None
        assert other.reconstruction is not None
        assert isinstance(one.activations, InlineTensor)
        assert isinstance(other.activations, InlineTensor)
        np.testing.assert_allclose(one.activations.array(), other.activations.array(), atol=1e-5)
        assert [feature.index for feature in one.top] == [feature.index for feature in other.top]


def test_tokens_can_be_left_out_and_nothing_else_changes(laboratory: Laboratory, engine: Engine, sae: Sae) -> None:
    full, short = run(laboratory, engine, sae), run(laboratory, engine, sae, per_token=False)
    assert all(prompt.per_token == () for prompt in short.prompts)
    assert [prompt.top for prompt in short.prompts] == [prompt.top for prompt in full.prompts]


def test_a_job_stops_at_the_layer_of_its_sae(laboratory: Laboratory, engine: Engine, sae: Sae) -> None:
    result = run(laboratory, engine, sae)
    tokens = sum(len(prompt.tokens.ids) for prompt in result.prompts)
    assert result.usage.token_layers == tokens * (LAYER + 1)
