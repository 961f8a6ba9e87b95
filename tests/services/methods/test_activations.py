"""Activations against TransformerLens' own cache, and against plain float64 forward passes."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from services.catalogue.resolve import Limits, resolve
from services.contracts.activations import ActivationsResult
from services.contracts.errors import ErrorCode, InvalidSpec
from services.contracts.tensor import ExternalTensor
from tests.brute_force import Reference
from tests.services.methods.conftest import FAMILIES, SPEC, Laboratory

PROMPTS = ["When John and Mary went to the shops", "The Eiffel Tower is in Paris"]
LAYER = 1
HOOKS = {
    "embed": "embed.hook_out",
    "resid_pre": "blocks.1.hook_resid_pre",
    "resid_post": "blocks.1.hook_resid_post",
    "attn_out": "blocks.1.hook_attn_out",
    "mlp_out": "blocks.1.hook_mlp_out",
    "mlp_post": "blocks.1.mlp.hook_post",
    **{site: f"blocks.1.attn.hook_{site}" for site in ("q", "k", "v", "z", "attn_scores", "pattern")},
}
"""TransformerLens' own names, written down a second time."""


def run(laboratory: Laboratory, sites: list[dict[str, Any]], model: str = "tiny-llama") -> ActivationsResult:
    result = laboratory.run({"kind": "activations", "model": model, "prompts": PROMPTS, "sites": sites})
    assert isinstance(result, ActivationsResult)
    return result


def arrays(result: ActivationsResult, prompt: int = 0) -> list[Any]:
    tensors = result.prompts[prompt].activations
    return [tensor.array() for tensor in tensors if not isinstance(tensor, ExternalTensor)]


def refused(laboratory: Laboratory, sites: list[dict[str, Any]], model: str = "tiny-llama") -> list[tuple[str, str]]:
    body = {"kind": "activations", "model": model, "prompts": PROMPTS, "sites": sites}
    with pytest.raises(InvalidSpec) as error:
        resolve(SPEC.validate_json(json.dumps(body)), laboratory.catalogue, Limits())
    return [(violation.pointer, violation.code) for violation in error.value.violations]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_site_equals_transformer_lens_cache(laboratory: Laboratory, family: str) -> None:
    model = f"tiny-{family.replace('_', '-')}"
    places = [{"site": site} | ({} if site == "embed" else {"layer": LAYER}) for site in HOOKS]
    result = run(laboratory, places, model)
    for prompt, reported in enumerate(result.prompts):
        with torch.no_grad():
            _, cache = laboratory.model(model).bridge.run_with_cache(torch.tensor([reported.tokens.ids]))
        for place, found in zip(result.sites, arrays(result, prompt), strict=True):
            expected = cache[HOOKS[place.site]][0]
            if place.site in ("attn_scores", "pattern"):
                expected = expected.transpose(0, 1)
            wanted = torch.where(expected <= torch.finfo(torch.float32).min / 2, torch.nan, expected)
            np.testing.assert_allclose(np.where(np.isinf(found), np.nan, found), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_residual_stream_equals_a_plain_float64_forward_pass(laboratory: Laboratory, family: str) -> None:
    model = f"tiny-{family.replace('_', '-')}"
    sites = ("resid_pre", "attn_out", "mlp_out", "resid_post", "z")
    result = run(laboratory, [{"site": site, "layer": LAYER} for site in sites], model)
    reference = Reference(laboratory.folder(model))
    for prompt, reported in enumerate(result.prompts):
        expected = reference.activations(reported.tokens.ids, [(site, LAYER) for site in sites])
        for site, found in zip(sites, arrays(result, prompt), strict=True):
            np.testing.assert_allclose(found.reshape(len(found), -1), expected[site, LAYER], rtol=0, atol=1e-4)


def test_heads_and_positions_are_cut_out_as_asked(laboratory: Laboratory) -> None:
    whole = arrays(run(laboratory, [{"site": "z", "layer": 2}, {"site": "v", "layer": 0}]))
    chosen = [
        {"site": "z", "layer": 2, "head": 3, "positions": [-1, 0]},
        {"site": "v", "layer": 0, "head": 1},
        {"site": "pattern", "layer": 1, "positions": [2]},
    ]
    result = run(laboratory, chosen)
    z, v, pattern = arrays(result)
    np.testing.assert_allclose(z, whole[0][[-1, 0], 3], atol=1e-6)
    np.testing.assert_allclose(v, whole[1][:, 1], atol=1e-6)
    length = len(result.prompts[0].tokens.ids)
    assert pattern.shape == (1, 4, length)
    np.testing.assert_allclose(pattern.sum(axis=-1), 1.0, atol=1e-5)
    dims = [tensor.dims for tensor in result.prompts[0].activations]
    assert dims == [("position", "d_head"), ("position", "d_head"), ("query", "head", "key")]


def test_a_hook_name_is_echoed_as_its_site_and_layer_and_may_be_asked_for_twice(laboratory: Laboratory) -> None:
    result = run(laboratory, [{"site": "blocks.2.attn.hook_k", "head": 1}, {"site": "k", "layer": 2, "head": 1}])
    assert [(place.site, place.layer, place.head) for place in result.sites] == [("k", 2, 1)] * 2
    first, second = arrays(result)
    np.testing.assert_array_equal(first, second)


def test_what_the_model_lacks_is_refused_with_a_pointer(laboratory: Laboratory) -> None:
    sites: list[dict[str, Any]] = [
        {"site": "resid_post", "layer": 3},
        {"site": "k", "layer": 0, "head": 2},
        {"site": "mlp_out", "layer": 0, "head": 0},
        {"site": "blocks.0.hook_nothing"},
        {"site": "z"},
        {"site": "embed", "layer": 0},
    ]
    assert refused(laboratory, sites) == [
        ("/sites/0/layer", ErrorCode.UNKNOWN_LAYER),
        ("/sites/1/head", ErrorCode.UNKNOWN_HEAD),
        ("/sites/2/head", ErrorCode.UNKNOWN_HEAD),
        ("/sites/3/site", ErrorCode.UNKNOWN_SITE),
        ("/sites/4/layer", ErrorCode.UNKNOWN_LAYER),
        ("/sites/5/layer", ErrorCode.UNKNOWN_LAYER),
    ]
    assert refused(laboratory, [{"site": "resid_mid", "layer": 0}], "tiny-gpt-neox") == [
        ("/sites/0/site", ErrorCode.UNKNOWN_SITE)
    ]


def test_a_position_that_a_prompt_lacks_or_that_is_named_twice_is_refused(laboratory: Laboratory) -> None:
    beyond = [{"site": "z", "layer": 0, "positions": [0, 100]}]
    assert refused(laboratory, beyond) == [("/sites/0/positions/1", ErrorCode.UNKNOWN_POSITION)]
    twice = [{"site": "z", "layer": 0, "positions": [1, 1]}]
    assert refused(laboratory, twice) == [("/sites/0/positions", ErrorCode.UNKNOWN_POSITION)]


@pytest.mark.parametrize(
    "sites",
    [
        [{"site": "embed"}],
        [{"site": "resid_pre", "layer": 0, "positions": [-1]}],
        [{"site": "resid_pre", "layer": 2}, {"site": "k", "layer": 1}],
        [{"site": "pattern", "layer": 2, "positions": [-1, 1]}, {"site": "mlp_post", "layer": 0}],
        [{"site": "attn_scores", "layer": 1, "head": 2}],
    ],
)
def test_the_estimate_is_the_bill_and_the_size(laboratory: Laboratory, sites: list[dict[str, Any]]) -> None:
    body = {"kind": "activations", "model": "tiny-llama", "prompts": PROMPTS, "sites": sites}
    cost = resolve(SPEC.validate_json(json.dumps(body)), laboratory.catalogue, Limits()).cost
    result = run(laboratory, sites)
    assert result.usage.token_layers == pytest.approx(cost.token_layers, rel=0.02)
    assert cost.output_bytes == sum(array.nbytes for prompt in range(2) for array in arrays(result, prompt))
