"""The weights view rebuilds what the model computed, family by family, from a run's own activations."""

import pytest
import torch

from services.contracts.site import SiteName
from services.engine.engine import Engine
from services.engine.readout import TokenLogits
from services.engine.row import Capture, Row, Site
from services.engine.ticket import JobTicket
from services.engine.weights import Weights
from tests.families import FAMILIES, NATIVES
from tests.services.engine.conftest import LoadTiny

TOKENS = (17, 41, 5, 230, 99, 8)
LAST = len(TOKENS) - 1
NAMED = (4, 200, 31)


@pytest.mark.parametrize("family", [*FAMILIES, *NATIVES])
def test_head_terms_add_up_to_what_attention_writes(
    family: str, load_tiny: LoadTiny, engine: Engine, job: JobTicket
) -> None:
    model = load_tiny(family, torch.float64)
    weights = Weights(model)
    for layer in range(model.facts.layers):
        z, attn_out = Capture(Site(SiteName.Z, layer)), Capture(Site(SiteName.ATTN_OUT, layer))
        (outcome,) = engine.run(model, [Row(TOKENS, captures=(z, attn_out))], job=job)
        heads, bias = weights.head_terms(layer, outcome.captures[z])
        assert heads.shape == (len(TOKENS), model.facts.heads, model.facts.d_model)
        torch.testing.assert_close(heads.sum(1) + bias, outcome.captures[attn_out], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", [*FAMILIES, "native_rotary"])
def test_a_direction_carried_back_to_heads_and_neurons_gives_what_they_add_to_it(
    family: str, load_tiny: LoadTiny, engine: Engine, job: JobTicket
) -> None:
    model = load_tiny(family, torch.float64)
    weights = Weights(model)
    direction = torch.randn(model.facts.d_model, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    sites = (SiteName.Z, SiteName.ATTN_OUT, SiteName.MLP_POST, SiteName.MLP_OUT)
    captures = [Capture(Site(site, 1), (LAST,)) for site in sites]
    (outcome,) = engine.run(model, [Row(TOKENS, captures=tuple(captures))], job=job)
    z, attn_out, mlp_post, mlp_out = (outcome.captures[capture][0].double() for capture in captures)
    to_heads = weights.attention_direction(1, z, direction)
    b_o, b_out = weights.b_O(1), weights.b_out(1)
    by_head = torch.einsum("hd,hdm,m->h", z, weights.W_O(1), to_heads)
    from_bias = 0.0 if b_o is None else b_o @ to_heads
    torch.testing.assert_close(by_head.sum() + from_bias, attn_out @ direction, rtol=1e-5, atol=1e-5)
    to_neurons = weights.mlp_direction(1, mlp_post, direction)
    by_neuron = mlp_post * (weights.W_out(1) @ to_neurons)
    from_bias = 0.0 if b_out is None else b_out @ to_neurons
    torch.testing.assert_close(by_neuron.sum() + from_bias, mlp_out @ direction, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", [*FAMILIES, *NATIVES])
def test_values_are_what_attention_makes_of_its_blocks_input(
    family: str, load_tiny: LoadTiny, engine: Engine, job: JobTicket
) -> None:
    model = load_tiny(family, torch.float64)
    weights = Weights(model)
    for layer in range(model.facts.layers):
        resid_pre, v = Capture(Site(SiteName.RESID_PRE, layer)), Capture(Site(SiteName.V, layer))
        (outcome,) = engine.run(model, [Row(TOKENS, captures=(resid_pre, v))], job=job)
        values = weights.values(layer, outcome.captures[resid_pre].double())
        torch.testing.assert_close(values.float(), outcome.captures[v], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", [*FAMILIES, *NATIVES])
def test_patterns_carry_the_values_of_the_heads_they_share_to_z(
    family: str, load_tiny: LoadTiny, engine: Engine, job: JobTicket
) -> None:
    model = load_tiny(family, torch.float64)
    pattern, v, z = (Capture(Site(site, 1)) for site in (SiteName.PATTERN, SiteName.V, SiteName.Z))
    (outcome,) = engine.run(model, [Row(TOKENS, captures=(pattern, v, z))], job=job)
    values = Weights(model).attended_values(outcome.captures[v])
    mixed = torch.einsum("qhk,khd->qhd", outcome.captures[pattern], values)
    torch.testing.assert_close(mixed, outcome.captures[z], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", [*FAMILIES, *NATIVES])
def test_the_final_norm_and_the_unembedding_give_the_models_logits(
    family: str, load_tiny: LoadTiny, engine: Engine, job: JobTicket
) -> None:
    model = load_tiny(family, torch.float64)
    weights = Weights(model)
    final = Capture(Site(SiteName.RESID_POST, model.facts.layers - 1), (LAST,))
    (outcome,) = engine.run(model, [Row(TOKENS, captures=(final,), readout=TokenLogits(LAST, NAMED))], job=job)
    residual = outcome.captures[final][0].double()
    norm = weights.final_norm
    normed = norm.linear(residual, norm.scale(residual)) + (0.0 if norm.bias is None else norm.bias)
    directions = weights.logit_directions(torch.tensor(NAMED))
    b_u = 0.0 if weights.b_U is None else weights.b_U[list(NAMED)] * weights.logit_scale
    logits = directions @ normed + b_u
    if weights.logit_soft_cap is not None:
        logits = (logits / weights.logit_soft_cap).tanh() * weights.logit_soft_cap
    torch.testing.assert_close(logits.float(), outcome.values(), rtol=0, atol=1e-5)
    torch.testing.assert_close(weights.logits(residual)[list(NAMED)].float(), outcome.values(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama", "olmo"])
def test_a_norm_is_linear_at_a_held_scale(family: str, load_tiny: LoadTiny) -> None:
    model = load_tiny(family, torch.float64)
    norm = Weights(model).final_norm
    one, other = torch.randn((2, model.facts.d_model), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scale = norm.scale(one + other)
    torch.testing.assert_close(norm.linear(one + other, scale), norm.linear(one, scale) + norm.linear(other, scale))
    assert norm.kind == ("rms" if family == "llama" else "layer")


@pytest.mark.parametrize("family", FAMILIES)
def test_head_inputs_make_q_k_and_v_of_what_attention_reads(
    family: str, load_tiny: LoadTiny, engine: Engine, job: JobTicket
) -> None:
    model = load_tiny(family, torch.float64)
    weights = Weights(model)
    for layer in range(model.facts.layers):
        stream = Capture(Site(SiteName.RESID_PRE, layer))
        made = [Capture(Site(site, layer)) for site in (SiteName.Q, SiteName.K, SiteName.V)]
        (outcome,) = engine.run(model, [Row(TOKENS, captures=(stream, *made))], job=job)
        read = outcome.captures[stream].double()
        norm = weights.attention_norm(layer)
        if norm is not None:
            read = norm.linear(read, norm.scale(read)) + (0.0 if norm.bias is None else norm.bias)
        for capture in made:
            W, b = weights.head_inputs(layer, capture.site.name)
            by_head = torch.einsum("pm,hdm->phd", read, W) + (0.0 if b is None else b)
            torch.testing.assert_close(by_head.float(), outcome.captures[capture], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_a_gradient_is_pulled_back_through_a_norm_as_autograd_does(family: str, load_tiny: LoadTiny) -> None:
    model = load_tiny(family, torch.float64)
    norm = Weights(model).attention_norm(1)
    assert norm is not None
    generator = torch.Generator().manual_seed(0)
    at, gradient = torch.randn((2, 3, model.facts.d_model), generator=generator, dtype=torch.float64)
    module = model.bridge.blocks[1].ln1.original_component
    at.requires_grad_()
    (expected,) = torch.autograd.grad(module(at), at, gradient)
    torch.testing.assert_close(norm.pulled_back(gradient, at.detach()), expected)
