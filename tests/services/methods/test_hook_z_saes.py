"""SAEs of attn.hook_z, all heads side by side, against plain float64 runs: what they read is wider than the stream."""

from typing import Any

import numpy as np
import pytest
import torch

from services.catalogue.catalogue import Catalogue
from services.contracts.errors import ErrorCode, InvalidSpec
from services.contracts.features import FeaturesResult
from services.engine.engine import Engine
from services.engine.weights import Weights
from services.methods.sae_places import SaePlaces
from services.saes.sae import Sae, TopK
from tests.brute_force import Reference
from tests.services.methods.attribution_patching import array
from tests.services.methods.conftest import Laboratory
from tests.services.methods.feature_reference import Plain, made
from tests.services.methods.saes import in_use
from tests.services.methods.test_feature_ablation import body as asked_ablation
from tests.services.methods.test_feature_ablation import run as ablate
from tests.services.methods.test_feature_attribution import FIRST_ORDER, ZERO, plainly
from tests.services.methods.test_feature_attribution import run as attribute
from tests.services.methods.test_feature_patching import at
from tests.services.methods.test_feature_patching import body as asked_patch
from tests.services.methods.test_feature_patching import plainly as plainly_patched
from tests.services.methods.test_feature_patching import run as patch
from tests.services.methods.test_generation import (
    FEATURE,
    PLAIN,
    added,
    assert_scores,
    clamped,
    from_first,
    greedy,
    projected_out,
)
from tests.services.methods.test_sae_evaluation import Evaluated, assert_equal, brute_force
from tests.services.methods.test_transcoders import made as made_transcoder
from worker.indexing import EngineRunner

FEATURES, K, LAYER = 64, 4, 1
PROMPTS = ["When John and Mary went to the shops", "The Eiffel Tower is in Paris"]
WIDTHS = {"tiny-llama": 48, "tiny-gpt2": 32, "tiny-gemma2": 48}


def make_sae(width: int = 48, **changes: Any) -> Sae:
    generator = torch.Generator().manual_seed(3)
    weights: dict[str, Any] = {
        "W_enc": torch.randn(width, FEATURES, generator=generator) / 4,
        "b_enc": torch.randn(FEATURES, generator=generator),
        "W_dec": torch.randn(FEATURES, width, generator=generator) / width**0.5,
        "b_dec": torch.randn(width, generator=generator) / 10,
        "mean_activation": torch.randn(width, generator=generator) / 10,
        "activation": TopK(K),
        "apply_b_dec_to_input": True,
        "hook_name": f"blocks.{LAYER}.attn.hook_z",
    }
    return Sae(**{**weights, **changes})


def run(laboratory: Laboratory, served_sae: Sae, model: str = "tiny-llama", **body: Any) -> Any:
    used = in_use(served_sae, model, site="z", layer=LAYER)
    served = Catalogue(laboratory.catalogue.home, laboratory.catalogue.models, {"sae": used.facts})
    return Laboratory(laboratory.engine, served).run({"model": model, **body}, used)


@pytest.mark.parametrize("model", WIDTHS)
def test_features_of_z_are_those_of_all_heads_side_by_side(laboratory: Laboratory, model: str) -> None:
    sae = make_sae(WIDTHS[model])
    chosen = list(range(FEATURES))
    result = run(
        laboratory, sae, model, kind="features", sae="sae", prompts=PROMPTS, features=chosen, reconstruction=True
    )
    assert isinstance(result, FeaturesResult)
    assert sae.mean_activation is not None
    for prompt in result.prompts:
        x = Reference(laboratory.folder(model)).activations(prompt.tokens.ids, [("z", LAYER)])["z", LAYER]
        pre = (x - sae.b_dec.double()) @ sae.W_enc.double() + sae.b_enc.double()
        features = torch.where(pre >= pre.sort(1, descending=True).values[:, K - 1 : K], pre.relu(), 0.0)
        np.testing.assert_allclose(prompt.activations.array(), features, atol=1e-4)  # type: ignore[union-attr]
        error = (x - features @ sae.W_dec.double() - sae.b_dec.double()).square().sum()
        variance = (x - sae.mean_activation.double()).square().sum()
        assert prompt.reconstruction is not None
        assert prompt.reconstruction.explained_variance == pytest.approx(float(1 - error / variance), abs=1e-4)


def test_promoted_tokens_go_through_the_output_projection(laboratory: Laboratory) -> None:
    sae = make_sae()
    result = run(laboratory, sae, kind="features", sae="sae", prompts=PROMPTS, promoted_logits=3)
    reference = Reference(laboratory.folder("tiny-llama"))
    for effect in result.effects:
        with torch.no_grad():
            written = reference.projection(LAYER).weight @ sae.W_dec[effect.index].double()
            logits = reference.model.lm_head.weight @ (written * reference.model.model.norm.weight)
        best = logits.topk(3)
        assert [token.token_id for token in effect.promoted] == best.indices.tolist()
        np.testing.assert_allclose([token.logit for token in effect.promoted], best.values, atol=1e-4)
    assert not result.effects_per_token_scale


def test_a_post_norms_gain_is_applied_and_its_scale_left_out(laboratory: Laboratory) -> None:
    """On Gemma 2 the sum of all directions is what the post-norm makes of it, but for one factor."""
    model, sae = laboratory.model("tiny-gemma2"), make_sae()
    places, weights = SaePlaces(in_use(sae, "tiny-gemma2", site="z", layer=LAYER).facts, model), Weights(model)
    with torch.no_grad():
        found = places.in_residual_stream(sae.W_dec, weights)
        heads, _ = weights.head_terms(LAYER, sae.W_dec.reshape(FEATURES, 4, 12))
    cosines = torch.cosine_similarity(found, heads.sum(-2), dim=1)
    torch.testing.assert_close(cosines, torch.ones(FEATURES), rtol=0, atol=1e-5)


@pytest.mark.parametrize("model", WIDTHS)
def test_evaluation_splices_z_as_a_plain_run_does(laboratory: Laboratory, engine: Engine, model: str) -> None:
    sae = make_sae(WIDTHS[model])
    plain = Evaluated(laboratory, engine, sae, model=model, site="z", layer=LAYER)
    ids = [prompt.ids for prompt in plain.resolved.inputs.prompts]
    norms = torch.cat([plain.reference.activations(tokens, [("z", LAYER)])["z", LAYER] for tokens in ids]).norm(dim=1)
    limited = make_sae(WIDTHS[model], norm_threshold=float(norms.sort().values[-4:-2].mean()))
    evaluated = Evaluated(laboratory, engine, limited, model=model, site="z", layer=LAYER)
    for found, filtered in ((evaluated.result.with_norm_filter, True), (evaluated.result.without_norm_filter, False)):
        assert found is not None
        assert_equal(found, evaluated.result.cross_entropy, brute_force(evaluated, limited, filtered=filtered))


@pytest.mark.parametrize("method", [{}, ZERO], ids=["pairs", "examples"])
def test_attribution_at_z_is_the_change_times_the_gradient_and_checks_exactly(
    laboratory: Laboratory, engine: Engine, method: dict[str, Any]
) -> None:
    used = made("z", 1, width=48)
    outcome = attribute(laboratory, engine, used, **FIRST_ORDER, **method)
    plain = plainly(laboratory, used, outcome)
    want = plain.changed * (plain.gradient() @ used.sae.W_dec.double().T)
    indices = [feature.index for feature in outcome.features]
    scale = float(want.abs().max())
    assert scale > 0
    found = [feature.effect.mean for feature in outcome.features]
    np.testing.assert_allclose(found, want.sum(0)[indices], atol=1e-4 * scale)
    for cell in outcome.check.cells[:4]:
        assert cell.exact == pytest.approx(plain.effect(plain.of_feature(cell.index)), abs=1e-4)
    assert outcome.total.exact.mean == pytest.approx(plain.effect(plain.whole), abs=1e-4)


def test_features_of_z_are_patched_at_each_position_as_a_plain_run_patches_them(
    laboratory: Laboratory, engine: Engine
) -> None:
    used = made("z", 1, width=48)
    result = patch(laboratory, engine, used, asked_patch(by_position=True, top_k=3))
    plain = plainly_patched(laboratory, used, result)
    for row, feature in zip(array(result.effects), result.features, strict=True):
        added = plain.of_feature(feature.index)
        want = [plain.effect(at(plain, [position], added)) for position in range(len(plain.base))]
        np.testing.assert_allclose(row, want, atol=1e-4)


def test_a_feature_of_z_is_ablated_as_a_plain_run_without_it(laboratory: Laboratory, engine: Engine) -> None:
    used = made("z", 1, width=48)
    result = ablate(laboratory, engine, used, asked_ablation(top_k=3))
    plain = Plain(laboratory, used, result.examples[0].tokens.ids, None)
    want = [plain.effect(plain.of_feature(feature.index)) for feature in result.features]
    np.testing.assert_allclose(array(result.effects), want, atol=1e-4)
    assert np.abs(array(result.effects)).max() > 0


@pytest.mark.parametrize("operation", ["add", "clamp", "project_out"])
def test_texts_are_steered_by_features_of_z(laboratory: Laboratory, operation: str) -> None:
    sae, reference = make_sae(), Reference(laboratory.folder("tiny-llama"))
    steering = FEATURE | {"operation": operation, "value": None if operation == "project_out" else 4.0}
    body: dict[str, Any] = {**PLAIN, "bos": True, "steering": [steering]}
    result = run(laboratory, sae, **body)
    change = {
        "add": added(sae, 7, 4.0),
        "clamp": clamped(sae, 7, 4.0),
        "project_out": lambda z: projected_out(z, sae.W_dec[7].double()),
    }[operation]
    for prompt in result.prompts:
        expected, log_probs = greedy(reference, prompt.tokens.ids, {("z", LAYER): from_first(prompt, change)})
        assert prompt.steered[0].tokens == expected
        assert_scores(prompt.steered[0].steered, log_probs)


def test_an_index_is_made_of_what_each_sae_reads_and_writes(laboratory: Laboratory) -> None:
    """SAEs of z and transcoders in one pass: the first reads all heads, the second what the MLP reads."""
    model = laboratory.model("tiny-llama")
    heads, transcoder = in_use(make_sae(), site="z", layer=LAYER), made_transcoder()
    facts = [heads.facts, transcoder.facts.model_copy(update={"id": "transcoder"})]
    runner = EngineRunner(laboratory.engine, model, laboratory.catalogue.tokenizer("tiny-llama"), facts, bos=0)
    tokens = [7, 9, 30, 12]
    (found,) = runner.activations([tokens])
    reference = Reference(laboratory.folder("tiny-llama"))
    places = [("z", LAYER), ("mlp_in", LAYER)]
    expected = reference.activations([0, *tokens], places)
    for sae_id, place in zip(("sae", "transcoder"), places, strict=True):
        torch.testing.assert_close(found[sae_id].double(), expected[place][1:], rtol=0, atol=1e-4)
    written = heads.sae.W_dec.double() @ reference.projection(LAYER).weight.T
    for sae_id, rows in (("sae", written), ("transcoder", transcoder.sae.W_dec.double())):
        with torch.no_grad():
            logits = (rows * reference.model.model.norm.weight) @ reference.model.lm_head.weight.T
        directions = (heads if sae_id == "sae" else transcoder).sae.W_dec
        torch.testing.assert_close(runner.logits(sae_id, directions).double(), logits, rtol=0, atol=1e-4)


def test_a_width_that_is_not_all_heads_is_refused_before_the_queue(laboratory: Laboratory) -> None:
    with pytest.raises(InvalidSpec) as refused:
        run(laboratory, make_sae(32), kind="features", sae="sae", prompts=PROMPTS)
    (violation,) = refused.value.violations
    assert (violation.code, violation.pointer) == (ErrorCode.SAE_MISMATCH, "/sae")
    assert "reads 32 dimensions, and tiny-llama has 48" in violation.message
