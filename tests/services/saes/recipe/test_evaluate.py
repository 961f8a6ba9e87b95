"""Splitting a model, caching its activations, and the card's figures, against independent computations."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from services.saes.recipe.activations import cache_activations, cached_activations
from services.saes.recipe.corpus import Tokens
from services.saes.recipe.evaluate import Figures, dead_fraction, evaluate
from services.saes.recipe.language_model import LowerModel, SplitModel, UpperModel, lower_model, split_model
from services.saes.recipe.settings import Recipe
from services.saes.sae import Sae, TopK
from tests.families import D_MODEL, VOCABULARY, build_family

LAYER = 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_family("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def model(folder: Path) -> SplitModel:
    return split_model(folder, LAYER)


@pytest.fixture(scope="module")
def tokens() -> Tokens:
    return np.random.default_rng(0).integers(3, VOCABULARY, (25, 16), dtype=np.int32)


@pytest.fixture(scope="module")
def sae(model: SplitModel, tokens: Tokens) -> Sae:
    """A random SAE whose threshold leaves half of the tokens out."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        x = model.activations(torch.from_numpy(tokens).long()).flatten(0, 1)
    decoder = torch.nn.functional.normalize(torch.randn(64, D_MODEL, generator=generator), dim=-1)
    return Sae(
        W_enc=decoder.T.contiguous(),
        b_enc=torch.zeros(64),
        W_dec=decoder,
        b_dec=x.mean(0),
        activation=TopK(6),
        apply_b_dec_to_input=True,
        hook_name=f"blocks.{LAYER}.hook_resid_post",
        norm_threshold=float(x.norm(dim=-1).median()),
        mean_activation=x.mean(0) + 0.1,
    )


def _hooked_loss(folder: Path, tokens: Tensor, replacement: Any) -> tuple[float, Tensor]:
    """Mean next-token loss of the whole model when `replacement(x)` is put at the layer's output; and that output."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    seen: list[Tensor] = []

    def splice(module: Any, arguments: Any, output: Tensor) -> Tensor:
        seen.append(output)
        changed: Tensor = replacement(output)
        return changed

    model.model.layers[LAYER].register_forward_hook(splice)
    with torch.no_grad():
        loss = model(input_ids=tokens, labels=tokens).loss
    return float(loss), seen[0]


def test_the_two_halves_make_the_whole_model(folder: Path, model: SplitModel) -> None:
    tokens = torch.arange(3, 3 + 2 * 10).view(2, 10)
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(model.logits(model.activations(tokens)), whole(tokens).logits)


def test_only_the_llama_family_is_cut(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="GPT2LMHeadModel"):
        split_model(build_family("gpt2", tmp_path), LAYER)


def test_every_figure_is_what_a_spliced_run_of_the_whole_model_gives(
    folder: Path, model: SplitModel, sae: Sae, tokens: Tokens
) -> None:
    figures = evaluate(sae, model, tokens, rows_at_once=4)
    ids = torch.from_numpy(tokens).long()
    assert sae.norm_threshold is not None
    threshold, mean = sae.norm_threshold, sae.mean_activation
    assert mean is not None

    def untouched_over_norm(replacement: Any) -> Any:
        return lambda x: torch.where(x.norm(dim=-1, keepdim=True) > threshold, x, replacement(x))

    def reconstruction(x: Tensor) -> Tensor:
        return sae.decode(sae.encode(x.flatten(0, 1))).view(x.shape)

    clean, x = _hooked_loss(folder, ids, lambda x: x)
    spliced, _ = _hooked_loss(folder, ids, untouched_over_norm(reconstruction))
    zero, _ = _hooked_loss(folder, ids, untouched_over_norm(torch.zeros_like))
    averaged, _ = _hooked_loss(folder, ids, untouched_over_norm(mean.expand_as))
    x = x[x.norm(dim=-1) <= threshold].double()
    x_hat = sae.decode(sae.encode(x.float())).double()
    fired = sae.encode(x.float()) > 0

    assert (figures.rows, figures.tokens, figures.tokens_over_norm) == (25, 400, 200)
    expected = {
        "cross_entropy_clean": clean,
        "cross_entropy_sae": spliced,
        "cross_entropy_zero_ablation": zero,
        "cross_entropy_mean_ablation": averaged,
        "explained_variance": float(1 - (x - x_hat).square().sum() / (x - mean).square().sum()),
        "mse": float((x - x_hat).square().mean()),
        "cosine": float(torch.nn.functional.cosine_similarity(x, x_hat).mean()),
        "l0": float(fired.double().sum(1).mean()),
        "silent_fraction": float((~fired.any(0)).double().mean()),
        "dense_fraction": float((fired.double().mean(0) > 0.1).double().mean()),
    }
    for name, value in expected.items():
        assert getattr(figures, name) == pytest.approx(value, rel=1e-4), name
    harm = figures.cross_entropy_sae - figures.cross_entropy_clean
    zero_harm = figures.cross_entropy_zero_ablation - figures.cross_entropy_clean
    mean_harm = figures.cross_entropy_mean_ablation - figures.cross_entropy_clean
    assert figures.recovered_against_zero == pytest.approx(1 - harm / zero_harm)
    assert figures.recovered_against_mean == pytest.approx(1 - harm / mean_harm)


class Interrupted(Exception):
    """Stands for whatever ends a process."""


@dataclass(frozen=True)
class Failing(LowerModel):
    """The model of a process that ends after some batches."""

    batches: list[int]

    def activations(self, tokens: Tensor) -> dict[int, Tensor]:
        if not self.batches:
            raise Interrupted
        self.batches.pop()
        return super().activations(tokens)


def test_one_pass_gives_the_activations_of_every_layer(folder: Path) -> None:
    tokens = torch.arange(3, 3 + 2 * 10).view(2, 10)
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        hidden = whole(tokens, output_hidden_states=True).hidden_states
        together = lower_model(folder, [0, LAYER]).activations(tokens)
        alone = split_model(folder, 0).activations(tokens)
    torch.testing.assert_close(together[0], hidden[1])
    torch.testing.assert_close(together[0], alone)
    assert sorted(together) == [0, LAYER]


def test_an_interrupted_cache_goes_on_where_it_stopped(model: SplitModel, tokens: Tokens, tmp_path: Path) -> None:
    recipe = Recipe(forward_rows=1, norm_factor=1.2)
    with pytest.raises(Interrupted):
        cache_activations(recipe, Failing(**model.lower.__dict__, batches=[0] * 22), tokens, tmp_path)
    assert json.loads((tmp_path / "activations.json").read_text()) == {"rows": 20}
    cache_activations(recipe, Failing(**model.lower.__dict__, batches=[0] * 5), tokens, tmp_path)
    cached = cached_activations(recipe, LAYER, (*tokens.shape, D_MODEL), tmp_path)
    with torch.no_grad():
        x = model.activations(torch.from_numpy(tokens).long()).flatten(0, 1)
    norms = torch.from_numpy(cached.values.astype(np.float32)).norm(dim=-1)
    assert float((norms - x.norm(dim=-1)).abs().max() / x.norm(dim=-1).median()) < 0.05
    assert cached.norm_threshold == pytest.approx(1.2 * cached.median_norm)
    assert set(cached.kept) == set(np.flatnonzero(norms.numpy() <= cached.norm_threshold))
    assert np.allclose(cached.mean, cached.values[cached.kept].astype(np.float64).mean(0), atol=1e-3)


@dataclass(frozen=True)
class FailingUpper(UpperModel):
    """The upper half of a model whose process ends after some runs."""

    runs: list[int]

    def logits(self, resid_post: Tensor) -> Tensor:
        if not self.runs:
            raise Interrupted
        self.runs.pop()
        return super().logits(resid_post)


def test_an_interrupted_evaluation_goes_on_where_it_stopped_to_the_same_figures(
    model: SplitModel, sae: Sae, tokens: Tokens, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "heldout.safetensors"

    def evaluated(runs: int) -> Figures:
        upper = FailingUpper(**vars(model.upper), runs=[0] * runs)
        return evaluate(sae, replace(model, upper=upper), tokens, rows_at_once=1, checkpoint=checkpoint)

    with pytest.raises(Interrupted):
        evaluated(4 * 13 + 1)
    assert evaluated(4 * 15) == evaluate(sae, model, tokens, rows_at_once=1)
    assert evaluated(0).rows == 25, "what is measured is not measured again"


def test_an_interrupted_count_of_dead_features_goes_on_where_it_stopped(
    model: SplitModel, sae: Sae, tokens: Tokens, tmp_path: Path
) -> None:
    cache_activations(Recipe(), model.lower, tokens, tmp_path)
    activations = cached_activations(Recipe(), LAYER, (*tokens.shape, D_MODEL), tmp_path)
    first_half = replace(activations, kept=activations.kept[:200])
    checkpoint = tmp_path / "dead.safetensors"
    silenced = replace(sae, b_enc=torch.cat([torch.full((16,), -1e6), sae.b_enc[16:]]))
    dead_fraction(silenced, first_half, tokens_at_once=20, checkpoint=checkpoint)
    seen = load_file(checkpoint)
    assert int(seen["tokens"]) == 200
    assert dead_fraction(silenced, activations, tokens_at_once=20, checkpoint=checkpoint) == 16 / 64
    save_file(seen | {"fired": torch.ones(64, dtype=torch.bool)}, checkpoint)
    assert dead_fraction(silenced, activations, tokens_at_once=20, checkpoint=checkpoint) == 0, "it begins with those"


def test_dead_features_are_those_that_no_training_token_fires(
    model: SplitModel, sae: Sae, tokens: Tokens, tmp_path: Path
) -> None:
    cache_activations(Recipe(), model.lower, tokens, tmp_path)
    activations = cached_activations(Recipe(), LAYER, (*tokens.shape, D_MODEL), tmp_path)
    b_enc = sae.b_enc.clone()
    b_enc[:16] = -1e6
    silenced = replace(sae, b_enc=b_enc)
    fires = silenced.encode(torch.from_numpy(activations.values[activations.kept]).float()) > 0
    assert dead_fraction(silenced, activations) == int((~fires.any(0)).sum()) / 64
    assert not fires[:, :16].any()
