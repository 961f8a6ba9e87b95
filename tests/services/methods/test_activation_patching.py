"""Activation patching against a whole float64 forward pass per cell, TransformerLens, and statistics by hand."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from transformer_lens import patching as transformer_lens_patching

from services.contracts.patching import PatchingResult
from services.contracts.tensor import InlineTensor, Statistic
from tests.brute_force import Reference
from tests.services.methods.conftest import FAMILIES, Laboratory

CLEAN = "When John and Mary went to the shops, John gave the bag to"
CORRUPTED = "When John and Mary went to the shops, Mary gave the bag to"
OTHER_CLEAN = "The Eiffel Tower is in Paris and John"
OTHER_CORRUPTED = "The Eiffel Tower is in Paris and Mary"
PAIR = {"clean": CLEAN, "corrupted": CORRUPTED, "answer": " Mary", "foil": " John"}
OTHER_PAIR = {"clean": OTHER_CLEAN, "corrupted": OTHER_CORRUPTED, "answer": " Mary", "foil": " is"}

TOLERANCE = 2e-5
"""In logits, on the tiny models; their effects are of the order of 0.1."""

Logits = Tensor
Metric = Callable[[Logits], float]


def job(family: str, site: str, **changes: Any) -> dict[str, Any]:
    method = {"type": "activation_patching", "site": site, **changes.pop("method", {})}
    model = family if family.startswith("smollm2") else f"tiny-{family.replace('_', '-')}"
    return {"kind": "patching", "model": model, "method": method, "pairs": [PAIR], **changes}


def run(laboratory: Laboratory, body: dict[str, Any]) -> PatchingResult:
    result = laboratory.run(body)
    assert isinstance(result, PatchingResult)
    return result


def array(estimate: Any) -> Any:
    assert isinstance(estimate, InlineTensor)
    return estimate.array()


def dims(estimate: Any) -> tuple[str, ...]:
    assert isinstance(estimate, InlineTensor)
    return estimate.dims


def ids(result: PatchingResult, pair: int = 0) -> tuple[tuple[int, ...], tuple[int, ...]]:
    tokens = result.pairs[pair].tokens
    return tokens.clean.ids, tokens.corrupted.ids


def tokens_of(laboratory: Laboratory, model: str, *texts: str) -> list[int]:
    tokenizer = laboratory.catalogue.tokenizer(model)
    return [tokenizer.read(text, bos=False).ids[0] for text in texts]


@pytest.mark.parametrize("mode", ["denoising", "noising"])
@pytest.mark.parametrize("site", ["resid_pre", "attn_out", "mlp_out"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_cell_by_position_equals_a_plain_forward_pass(
    laboratory: Laboratory, family: str, site: str, mode: str
) -> None:
    body = job(family, site, method={"mode": mode})
    result = run(laboratory, body)
    reference = Reference(laboratory.folder(body["model"]))
    answer, foil = tokens_of(laboratory, body["model"], " Mary", " John")
    clean, corrupted = ids(result)
    target, source = (corrupted, clean) if mode == "denoising" else (clean, corrupted)

    def metric(logits: Logits) -> float:
        return float(logits[-1, answer] - logits[-1, foil])

    base, other = metric(reference.logits(target)), metric(reference.logits(source))
    expected = np.array(
        [
            [
                metric(reference.patched(target, source, (site, layer), position, None)) - base
                for position in range(len(clean))
            ]
            for layer in result.layers or ()
        ]
    )
    effects = array(result.effects)
    assert dims(result.effects) == ("layer", "position")
    assert np.abs(expected).max() > 200 * TOLERANCE, "the reference itself must see an effect"
    np.testing.assert_allclose(effects, expected, atol=TOLERANCE)
    np.testing.assert_allclose(array(result.normalized), expected / (other - base), atol=1e-3, rtol=1e-3)
    baselines = result.pairs[0].baselines
    found = (baselines.clean, baselines.corrupted)
    np.testing.assert_allclose(found, (other, base) if mode == "denoising" else (base, other), atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_head_equals_a_plain_forward_pass(laboratory: Laboratory, family: str) -> None:
    body = job(family, "z")
    result = run(laboratory, body)
    by_position = run(laboratory, job(family, "z", method={"positions": [-5, -1], "heads": [3, 1], "layers": [2, 0]}))
    reference = Reference(laboratory.folder(body["model"]))
    answer, foil = tokens_of(laboratory, body["model"], " Mary", " John")
    clean, corrupted = ids(result)

    def effect(layer: int, head: int, position: int | None) -> float:
        logits = reference.patched(corrupted, clean, ("z", layer), position, head)
        return float(logits[-1, answer] - logits[-1, foil]) - result.pairs[0].baselines.corrupted

    assert dims(result.effects) == ("layer", "head")
    expected = [[effect(layer, head, None) for head in range(4)] for layer in range(3)]
    np.testing.assert_allclose(array(result.effects), expected, atol=TOLERANCE)
    assert dims(by_position.effects) == ("layer", "head", "position")
    last = len(clean)
    cells = [[[effect(layer, head, at) for at in (last - 5, last - 1)] for head in (3, 1)] for layer in (2, 0)]
    np.testing.assert_allclose(array(by_position.effects), cells, atol=TOLERANCE)


@pytest.mark.parametrize("by_position", [False, True], ids=["all positions", "by position"])
@pytest.mark.parametrize("site", ["q", "k", "v", "z", "pattern"])
def test_sites_with_heads_equal_transformer_lens(laboratory: Laboratory, site: str, by_position: bool) -> None:
    method = {"positions": list(range(15))} if by_position else {}
    result = run(laboratory, job("gpt2", site, method=method))
    clean, corrupted = (torch.tensor([prompt]) for prompt in ids(result))
    named = {"z": "out"}.get(site, site)
    suffix = "by_pos" if by_position else "all_pos"
    theirs = getattr(transformer_lens_patching, f"get_act_patch_attn_head_{named}_{suffix}")
    mary, john = tokens_of(laboratory, "tiny-gpt2", " Mary", " John")
    bridge = laboratory.model("tiny-gpt2").bridge
    with torch.no_grad():
        _, cache = bridge.run_with_cache(clean)
        expected = (
            theirs(bridge, corrupted, cache, partial(difference, mary, john)).numpy()
            - result.pairs[0].baselines.corrupted
        )
    if by_position and site != "pattern":  # theirs is [layer, position, head]
        expected = expected.transpose(0, 2, 1)
    np.testing.assert_allclose(array(result.effects), expected, atol=TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_residual_stream_after_a_layer_is_that_before_the_next(laboratory: Laboratory, family: str) -> None:
    after = run(laboratory, job(family, "resid_post", method={"layers": [0, 1]}))
    before = run(laboratory, job(family, "resid_pre", method={"layers": [1, 2]}))
    np.testing.assert_allclose(array(after.effects), array(before.effects), atol=TOLERANCE)


def test_the_embedding_is_swept_over_positions_alone(laboratory: Laboratory) -> None:
    result = run(laboratory, job("llama", "embed"))
    assert (dims(result.effects), result.layers) == (("position",), None)
    before = run(laboratory, job("llama", "resid_pre", method={"layers": [0]}))
    np.testing.assert_allclose(array(result.effects), array(before.effects)[0], atol=TOLERANCE)


def test_grouped_queries_have_one_cell_per_key_value_head(laboratory: Laboratory) -> None:
    result = run(laboratory, job("llama", "v", method={"layers": [0, 2]}))
    assert result.heads == (0, 1)
    assert array(result.effects).shape == (2, 2)


def reference_metrics(clean_logits: Logits, clean: tuple[int, ...], tokens: dict[str, int]) -> dict[str, Metric]:
    """The metrics written out by hand, on float64 logits [position, vocabulary]."""
    mary, john, gave = tokens["Mary"], tokens["John"], tokens["gave"]
    targets = torch.tensor(clean[1:])

    def kl(logits: Logits) -> float:
        p, q = clean_logits[-1].softmax(-1), logits[-1].softmax(-1)
        return float((p * (p.log() - q.log())).sum())

    def cross_entropy(logits: Logits) -> float:
        return float(torch.nn.functional.cross_entropy(logits[:-1], targets))

    return {
        "logit": lambda logits: float(logits[-2, mary]),
        "log_prob": lambda logits: float(logits[-1].log_softmax(-1)[mary]),
        "prob_diff": lambda logits: float(logits[-1].softmax(-1) @ indicator(logits, (mary, gave), (john,))),
        "kl_divergence": kl,
        "cross_entropy": cross_entropy,
    }


def indicator(logits: Logits, plus: tuple[int, ...], minus: tuple[int, ...]) -> Tensor:
    signs = torch.zeros(logits.shape[-1], dtype=logits.dtype)
    signs[list(plus)], signs[list(minus)] = 1.0, -1.0
    return signs


METRICS: list[dict[str, Any]] = [
    {"type": "logit", "position": -2},
    {"type": "log_prob"},
    {"type": "prob_diff", "answers": [" Mary", " gave"], "foils": [" John"]},
    {"type": "kl_divergence"},
    {"type": "cross_entropy"},
]


@pytest.mark.parametrize("mode", ["denoising", "noising"])
@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: str(metric["type"]))
def test_every_metric_is_what_its_name_says(laboratory: Laboratory, metric: dict[str, Any], mode: str) -> None:
    body = job("llama", "resid_pre", metric=metric, method={"mode": mode, "layers": [1], "positions": [-5, -2, -1]})
    result = run(laboratory, body)
    reference = Reference(laboratory.folder("tiny-llama"))
    clean, corrupted = ids(result)
    names = dict(
        zip(("Mary", "John", "gave"), tokens_of(laboratory, "tiny-llama", " Mary", " John", " gave"), strict=True)
    )
    value = reference_metrics(reference.logits(clean), clean, names)[metric["type"]]
    target, source = (corrupted, clean) if mode == "denoising" else (clean, corrupted)
    base = value(reference.logits(target))
    positions = [len(clean) + position for position in (-5, -2, -1)]
    expected = [value(reference.patched(target, source, ("resid_pre", 1), at, None)) - base for at in positions]
    np.testing.assert_allclose(array(result.effects)[0], expected, atol=1e-5)
    baselines = result.pairs[0].baselines
    np.testing.assert_allclose(baselines.clean, value(reference.logits(clean)), atol=1e-5)
    np.testing.assert_allclose(baselines.corrupted, value(reference.logits(corrupted)), atol=1e-5)


def test_patching_the_differing_position_at_layer_zero_restores_the_other_run(laboratory: Laboratory) -> None:
    result = run(laboratory, job("llama", "resid_pre", method={"layers": [0]}))
    (differing,) = result.pairs[0].differing_positions
    normalized = array(result.normalized)[0]
    np.testing.assert_allclose(normalized[differing], 1.0, atol=1e-4)
    np.testing.assert_allclose(np.delete(normalized, differing), 0.0, atol=1e-4)


def test_identical_prompts_give_no_effect_and_a_null_ratio_with_a_warning(laboratory: Laboratory) -> None:
    result = run(laboratory, job("llama", "attn_out", pairs=[PAIR | {"corrupted": CLEAN}]))
    np.testing.assert_allclose(array(result.effects), 0.0, atol=1e-5)
    assert np.isnan(array(result.normalized)).all()
    assert "too little to divide by" in result.warnings[0]
    values = result.model_dump(mode="json")["normalized"]["values"]
    assert set(values) == {None}


def test_many_pairs_give_means_standard_errors_and_a_ratio_of_means(laboratory: Laboratory) -> None:
    pairs = [PAIR, OTHER_PAIR]
    together = run(laboratory, job("llama", "z", pairs=pairs, per_pair=True))
    alone = [run(laboratory, job("llama", "z", pairs=[pair])) for pair in pairs]
    effects = np.stack([array(result.effects) for result in alone])
    assert isinstance(together.effects, Statistic)
    assert together.effects.count == 2
    np.testing.assert_allclose(array(together.effects.mean), effects.mean(axis=0), atol=1e-5)
    error = np.abs(effects[0] - effects[1]) / 2
    np.testing.assert_allclose(array(together.effects.standard_error), error, atol=1e-5)
    gaps = [result.pairs[0].baselines.clean - result.pairs[0].baselines.corrupted for result in alone]
    assert isinstance(together.normalized, Statistic)
    ratio = effects.sum(axis=0) / sum(gaps)
    np.testing.assert_allclose(array(together.normalized.mean), ratio, atol=1e-4)
    for pair, expected in zip(together.pairs, effects, strict=True):
        np.testing.assert_allclose(array(pair.effects), expected, atol=1e-5)


def test_named_positions_are_averaged_where_they_correspond(laboratory: Laboratory) -> None:
    pairs = [PAIR | {"positions": {"S2": -5, "END": -1}}, OTHER_PAIR | {"positions": {"S2": -1, "END": -1}}]
    named = run(laboratory, job("llama", "resid_pre", pairs=pairs, method={"positions": ["S2", "END"]}))
    first = run(laboratory, job("llama", "resid_pre", pairs=pairs[:1], method={"positions": [-5, -1]}))
    second = run(laboratory, job("llama", "resid_pre", pairs=pairs[1:], method={"positions": [-1, -1]}))
    assert named.positions == ("S2", "END")
    assert isinstance(named.effects, Statistic)
    expected = (array(first.effects) + array(second.effects)) / 2
    np.testing.assert_allclose(array(named.effects.mean), expected, atol=1e-5)


def test_the_ioi_pair_of_smollm2_has_its_known_baselines(smollm2: Laboratory) -> None:
    body = job("smollm2-135m", "resid_pre", method={"layers": [0], "positions": [9, 13]})
    result = run(smollm2, body)
    baselines = result.pairs[0].baselines
    assert baselines.clean == pytest.approx(3.12, abs=0.02)
    assert baselines.corrupted == pytest.approx(-4.16, abs=0.02)
    with_bos = run(smollm2, body | {"bos": True, "method": body["method"] | {"positions": [10]}})
    assert with_bos.pairs[0].baselines.clean == pytest.approx(4.62, abs=0.02)
    assert with_bos.pairs[0].baselines.corrupted == pytest.approx(-3.67, abs=0.02)
    np.testing.assert_allclose(array(result.normalized), [[1.0, 0.0]], atol=1e-4)


@pytest.mark.parametrize(
    ("site", "setter"),
    [
        ("resid_pre", transformer_lens_patching.layer_pos_patch_setter),
        ("attn_out", transformer_lens_patching.layer_pos_patch_setter),
        ("mlp_out", transformer_lens_patching.layer_pos_patch_setter),
        ("z", transformer_lens_patching.layer_head_vector_patch_setter),
    ],
)
def test_cells_of_smollm2_equal_transformer_lens(smollm2: Laboratory, site: str, setter: Callable[..., Any]) -> None:
    """A seeded sample of cells: the library runs one whole pass for each."""
    axis, size = ("head", 9) if site == "z" else ("pos", 14)
    generator = np.random.default_rng(0)
    cells = pd.DataFrame({"layer": generator.integers(0, 30, 6), axis: generator.integers(0, size, 6)})
    result = run(
        smollm2, job("smollm2-135m", site, method={"layers": sorted({int(layer) for layer in cells["layer"]})})
    )
    bridge = smollm2.model("smollm2-135m").bridge
    answer, foil = tokens_of(smollm2, "smollm2-135m", " Mary", " John")
    clean, corrupted = (torch.tensor([prompt]) for prompt in ids(result))
    with torch.no_grad():
        _, cache = bridge.run_with_cache(clean)
        theirs = transformer_lens_patching.generic_activation_patch(
            bridge,
            corrupted,
            cache,
            partial(difference, answer, foil),
            setter,
            activation_name=site,
            index_df=cells,
            return_index_df=False,
        )
    layers = result.layers or ()
    ours = [
        array(result.effects)[layers.index(int(layer)), int(at)]
        for layer, at in zip(cells["layer"], cells[axis], strict=True)
    ]
    expected = theirs.numpy() - result.pairs[0].baselines.corrupted
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def difference(answer: int, foil: int, logits: Tensor) -> Tensor:
    return logits[0, -1, answer] - logits[0, -1, foil]
