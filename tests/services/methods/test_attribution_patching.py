"""AtP against autograd on plain transformers in float64, TransformerLens' function, and activation patching."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformer_lens.tools.analysis.attribution_patching import Node, attribution_patch

from services.catalogue.catalogue import open_catalogue
from services.catalogue.operator import FolderSource, ModelEntry, weights_sha256
from services.contracts.attribution_patching import AttributionPatchingOutcome
from services.contracts.errors import ErrorCode, InvalidSpec
from services.contracts.patching import PatchingResult
from services.contracts.tensor import Statistic
from services.engine.engine import Engine
from services.methods.attribution_check import rank_correlation
from services.models.load import load_model
from services.models.prepare import prepare_model
from tests.families import HEADS, LAYERS, build_family
from tests.services.methods.attribution_patching import (
    CLEAN,
    CORRUPTED,
    PAIR,
    PlainPair,
    array,
    attribute,
    effects,
    job,
    nodes,
)
from tests.services.methods.conftest import FAMILIES, Laboratory

SITES = {"z": HEADS, "attn_out": None, "mlp_out": None, "resid_pre": None}
KV_HEADS = 2


@pytest.mark.parametrize("mode", ["denoising", "noising"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_estimate_equals_autograd_in_float64(laboratory: Laboratory, family: str, mode: str) -> None:
    body = job(family, mode=mode, nodes=list(SITES))
    outcome = attribute(laboratory, body)
    plain = PlainPair(laboratory, outcome, body["model"])
    for site, heads in SITES.items():
        expected = plain.first_order(site, heads)
        np.testing.assert_allclose(effects(outcome)[site], expected, atol=1e-4 * np.abs(expected).max(), err_msg=site)


def test_queries_keys_and_values_equal_autograd_in_float64(laboratory: Laboratory) -> None:
    outcome = attribute(laboratory, job("llama", nodes=["q", "k", "v"]))
    plain = PlainPair(laboratory, outcome, "tiny-llama")
    for site, heads in {"q": HEADS, "k": KV_HEADS, "v": KV_HEADS}.items():
        expected = plain.first_order(site, heads)
        np.testing.assert_allclose(effects(outcome)[site], expected, atol=1e-4 * np.abs(expected).max(), err_msg=site)


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_and_mlps_equal_transformer_lens(laboratory: Laboratory, family: str) -> None:
    body = job(family)
    outcome = attribute(laboratory, body)
    facts = laboratory.catalogue.model(body["model"])
    model = load_model(laboratory.folder(facts.id), facts, device=torch.device("cpu"), dtype=torch.float32)
    model.bridge.requires_grad_(True)  # their function raises on frozen weights
    plain = PlainPair(laboratory, outcome, facts.id)
    tokens = outcome.pairs[0].tokens
    clean, corrupted = (torch.tensor([run.ids]) for run in (tokens.clean, tokens.corrupted))
    scores = attribution_patch(model.bridge, clean, corrupted, lambda logits: plain.metric(logits[0])).node_scores
    largest = max(abs(score) for score in scores.values())
    found = effects(outcome)
    for layer, head, position in np.ndindex(found["z"].shape):
        node = Node("attn_head_out", position=position, layer=layer, head=head)
        assert found["z"][layer, head, position] == pytest.approx(scores[node], abs=1e-4 * largest)
    for layer, position in np.ndindex(found["mlp_out"].shape):
        node = Node("mlp_out", position=position, layer=layer)
        assert found["mlp_out"][layer, position] == pytest.approx(scores[node], abs=1e-4 * largest)


@pytest.fixture(scope="module")
def linear(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    """GPT-2 made linear: even attention (queries of zero), an identity for the activation, and norms whose epsilon is
    so large that they only centre."""
    root, home = tmp_path_factory.mktemp("linear"), tmp_path_factory.mktemp("home")
    folder = build_family("gpt2", root / "gpt2")
    config = json.loads((folder / "config.json").read_text())
    config |= {"activation_function": "linear", "layer_norm_epsilon": 1e12}
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if ".ln_" in name and name.endswith("weight"):
            weight.mul_(1e6)
        if "attn.c_attn" in name:
            weight[..., : weight.shape[-1] // 3] = 0.0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    source = FolderSource(type="folder", path="gpt2", sha256=weights_sha256([folder / "model.safetensors"]))
    prepare_model(ModelEntry(id="tiny-linear", name="linear", revision="1", source=source), root, home)
    return Laboratory(engine, open_catalogue(home))


@pytest.mark.parametrize("mode", ["denoising", "noising"])
def test_the_estimate_is_exact_in_a_linear_model(linear: Laboratory, mode: str) -> None:
    sites = ["z", "v", "attn_out", "mlp_out", "resid_pre"]
    outcome = attribute(linear, job("tiny-linear", mode=mode, nodes=sites, check={"top_k": 1_000}))
    check = outcome.check
    largest = max(abs(cell.exact) for cell in check.cells)
    assert len(check.cells) == 5 * LAYERS * (2 * HEADS + 3)
    assert largest > 0.01
    assert check.largest_error < 1e-4 * largest
    assert check.rank_correlation == pytest.approx(1.0, abs=0.001)


def test_named_positions_are_the_same_nodes(laboratory: Laboratory) -> None:
    everywhere = attribute(laboratory, job("llama"))
    pair = PAIR | {"positions": {"END": -1}}
    named = attribute(laboratory, job("llama", [pair], positions=["END", 3]))
    last = len(everywhere.pairs[0].tokens.clean.ids) - 1
    for site in ("z", "mlp_out"):
        expected = effects(everywhere)[site][..., [last, 3]]
        np.testing.assert_allclose(effects(named)[site], expected, atol=1e-6)
        assert nodes(named, site).positions == ("END", 3)


def test_many_pairs_give_means_with_standard_errors(laboratory: Laboratory) -> None:
    other = PAIR | {"clean": CORRUPTED, "corrupted": CLEAN}
    together = attribute(laboratory, job("gpt2", [PAIR, other]) | {"per_example": True})
    alone = [effects(attribute(laboratory, job("gpt2", [pair])))["z"] for pair in (PAIR, other)]
    found = nodes(together, "z").effects
    assert isinstance(found, Statistic)
    assert found.count == 2
    np.testing.assert_allclose(array(found.mean), np.mean(alone, axis=0), atol=1e-5)
    np.testing.assert_allclose(array(found.standard_error), np.abs(alone[0] - alone[1]) / 2, atol=1e-5)
    for pair, expected in zip(together.pairs, alone, strict=True):
        assert pair.nodes is not None
        np.testing.assert_allclose(array(pair.nodes[0].effects), expected, atol=1e-5)


def test_pairs_of_different_lengths_are_summed_over_positions(laboratory: Laboratory) -> None:
    longer = PAIR | {"clean": f"Then, {CLEAN}", "corrupted": f"Then, {CORRUPTED}"}
    together = attribute(laboratory, job("llama", [PAIR, longer]))
    alone = [effects(attribute(laboratory, job("llama", [pair]))) for pair in (PAIR, longer)]
    for site, axes in {"z": (LAYERS, HEADS), "mlp_out": (LAYERS,)}.items():
        found = nodes(together, site)
        assert isinstance(found.effects, Statistic)
        assert array(found.effects.mean).shape == axes
        expected = np.mean([of_pair[site].sum(-1) for of_pair in alone], axis=0)
        np.testing.assert_allclose(array(found.effects.mean), expected, atol=1e-5)
        assert found.positions is None
    assert all(cell.position is None for cell in together.check.cells)


@pytest.mark.parametrize("mode", ["denoising", "noising"])
def test_checked_nodes_have_the_effects_of_activation_patching(laboratory: Laboratory, mode: str) -> None:
    check = attribute(laboratory, job("gpt_neox", mode=mode, check={"top_k": 4, "sampled": 5, "seed": 3})).check
    assert [cell.chosen for cell in check.cells] == ["top"] * 4 + ["sampled"] * 5
    for cell in check.cells:
        sweep: dict[str, Any] = {"type": "activation_patching", "mode": mode, "site": cell.site, "layers": [cell.layer]}
        sweep |= {"positions": [cell.position]} | ({} if cell.head is None else {"heads": [cell.head]})
        body = {"kind": "patching", "model": "tiny-gpt-neox", "method": sweep, "pairs": [PAIR]}
        result = laboratory.run(body)
        assert isinstance(result, PatchingResult)
        assert cell.exact == pytest.approx(float(array(result.effects).item()), abs=1e-4)


def test_the_check_counts_what_it_shows(laboratory: Laboratory) -> None:
    body = job("gemma2", check={"top_k": 5, "sampled": 40})
    outcome = attribute(laboratory, body)
    cells, first = outcome.check.cells, min(outcome.pairs[0].differing_positions)
    estimated, exact = (np.array([getattr(cell, name) for cell in cells]) for name in ("estimated", "exact"))
    assert outcome.check.largest_error == pytest.approx(np.abs(estimated - exact).max())
    missed = np.abs(exact[5:]) > np.abs(exact[:5]).min()
    assert outcome.check.false_negatives == missed.sum()
    assert all(isinstance(cell.position, int) and cell.position >= first for cell in cells)
    everything = np.concatenate([np.abs(found).ravel() for found in effects(outcome).values()])
    assert sorted(np.abs(estimated[:5])) == pytest.approx(sorted(everything)[-5:])
    again = [cell.exact for cell in attribute(laboratory, body).check.cells]
    assert again == pytest.approx(list(exact), abs=1e-6)


def test_ranks_that_are_equal_share_their_mean() -> None:
    one, other = np.array([1.0, 2.0, 2.0, 5.0]), np.array([10.0, 30.0, 20.0, 90.0])
    assert rank_correlation(one, other) == pytest.approx(np.corrcoef([1, 2.5, 2.5, 4], [1, 3, 2, 4])[0, 1])
    assert rank_correlation(one, -one) == pytest.approx(-1.0)
    assert rank_correlation(one, np.zeros(4)) is None


def test_a_pair_of_equal_prompts_has_no_effects_and_nothing_to_check(laboratory: Laboratory) -> None:
    outcome = attribute(laboratory, job("llama", [PAIR | {"corrupted": CLEAN}]))
    assert not effects(outcome)["z"].any()
    assert outcome.check.cells == ()
    assert outcome.check.rank_correlation is None


def refusal(laboratory: Laboratory, body: dict[str, Any]) -> tuple[str, ErrorCode, str]:
    with pytest.raises(InvalidSpec) as refused:
        laboratory.run(body)
    (violation,) = refused.value.violations
    return violation.pointer, violation.code, violation.message


def test_what_cannot_be_attributed_is_refused_before_queueing(laboratory: Laboratory) -> None:
    divergence = {"metric": {"type": "kl_divergence"}}
    pointer, code, message = refusal(laboratory, job("llama", mode="noising") | divergence)
    assert (pointer, code) == ("/metric/type", ErrorCode.UNSUPPORTED_METRIC)
    assert "its gradient there is zero: use denoising" in message
    pointer, code, message = refusal(laboratory, job("llama", nodes=["z", "z"]))
    assert (pointer, message) == ("/method/nodes/1", "z is named twice")
    pointer, code, _ = refusal(laboratory, job("llama", positions=["S2"]))
    assert (pointer, code) == ("/method/positions/0", ErrorCode.UNKNOWN_POSITION)


def test_the_divergence_is_attributed_where_the_target_is_corrupted(laboratory: Laboratory) -> None:
    outcome: AttributionPatchingOutcome = attribute(laboratory, job("llama") | {"metric": {"type": "kl_divergence"}})
    assert outcome.pairs[0].baselines.clean == pytest.approx(0.0, abs=1e-6)
    assert np.abs(effects(outcome)["z"]).max() > 1e-3
