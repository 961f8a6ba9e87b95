"""Direct logit terms by position, source token and neuron, against the same sums written out in float64."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from services.catalogue.resolve import Limits, resolve
from services.contracts.attribution import AttributionResult
from services.contracts.direct_logit_attribution import DirectLogitAttribution, DirectLogitOutcome
from services.contracts.direct_logit_terms import DirectLogitTerms
from services.contracts.errors import ErrorCode, InvalidSpec
from services.contracts.model import SiteFacts
from services.contracts.site import SiteName
from services.contracts.tensor import InlineTensor, Statistic
from tests.brute_force import Reference
from tests.services.methods.conftest import FAMILIES, SPEC, Laboratory
from tests.services.methods.test_direct_logit_attribution import EXAMPLE, Linearised, head_weights

LAYERS, HEADS = 3, 4
OTHER = {"prompt": "When Mary and John went to the shops, John gave the bag to", "answer": " Mary", "foil": " John"}


def job(family: str, examples: list[Any] | None = None, metric: Any = None, **method: Any) -> dict[str, Any]:
    return {
        "kind": "attribution",
        "model": f"tiny-{family.replace('_', '-')}",
        "method": {"type": "direct_logit_attribution", **method},
        "examples": examples or [EXAMPLE],
        "metric": metric or {"type": "logit_diff"},
    }


def run(laboratory: Laboratory, body: dict[str, Any]) -> DirectLogitOutcome:
    result = laboratory.run(body)
    assert isinstance(result, AttributionResult)
    assert isinstance(result.attribution, DirectLogitOutcome)
    return result.attribution


def array(estimate: Any) -> Any:
    assert isinstance(estimate, InlineTensor)
    return estimate.array()


def parts(terms: DirectLogitTerms | None) -> dict[str, Any]:
    assert terms is not None
    return {name: array(getattr(terms, name)) for name in DirectLogitTerms.model_fields}


def direction(laboratory: Laboratory, reference: Reference, family: str) -> Tensor:
    tokenizer = laboratory.catalogue.tokenizer(f"tiny-{family.replace('_', '-')}")
    mary, john = (tokenizer.read(name, bos=False).ids[0] for name in (" Mary", " John"))
    W_U: Tensor = reference.model.get_output_embeddings().weight
    return W_U[mary] - W_U[john]


@pytest.mark.parametrize("family", FAMILIES)
def test_terms_by_position_are_those_of_the_metric_at_each_position(laboratory: Laboratory, family: str) -> None:
    outcome = run(laboratory, job(family, by_position=True))
    length = len(outcome.examples[0].tokens.ids)
    everywhere = parts(outcome.by_position)
    assert array(outcome.by_position and outcome.by_position.heads).shape == (LAYERS, HEADS, length)
    for position in (0, 3, length - 1):
        alone = run(laboratory, job(family, metric={"type": "logit_diff", "position": position}))
        for name, values in parts(alone.terms).items():
            np.testing.assert_allclose(everywhere[name][..., position], values, atol=1e-4)
    for name, values in parts(outcome.terms).items():
        np.testing.assert_allclose(everywhere[name][..., -1], values, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_terms_by_position_add_up_to_every_positions_own_logits(laboratory: Laboratory, family: str) -> None:
    outcome = run(laboratory, job(family, by_position=True))
    reference = Reference(laboratory.folder(f"tiny-{family.replace('_', '-')}"))
    logits = reference.logits(outcome.examples[0].tokens.ids)
    cap = getattr(reference.model.config, "final_logit_softcapping", None)
    raw = logits if cap is None else cap * (logits / cap).atanh()
    tokenizer = laboratory.catalogue.tokenizer(f"tiny-{family.replace('_', '-')}")
    mary, john = (tokenizer.read(name, bos=False).ids[0] for name in (" Mary", " John"))
    terms = parts(outcome.by_position)
    sums = sum(values.reshape(-1, values.shape[-1]).sum(axis=0) for values in terms.values())
    np.testing.assert_allclose(sums, raw[:, mary] - raw[:, john], atol=1e-3)


def grouped_values(reference: Reference, layer: int, residual: Tensor) -> Tensor:
    block = reference.blocks[layer]
    values: Tensor = block.self_attn.v_proj(block.input_layernorm(residual))
    return values.reshape(len(residual), 2, reference.d_head).repeat_interleave(2, dim=1)


def gpt2_values(reference: Reference, layer: int, residual: Tensor) -> Tensor:
    block = reference.blocks[layer]
    joint: Tensor = block.attn.c_attn(block.ln_1(residual))
    return joint[:, 64:].reshape(len(residual), HEADS, reference.d_head)


def gpt_neox_values(reference: Reference, layer: int, residual: Tensor) -> Tensor:
    block = reference.blocks[layer]
    joint: Tensor = block.attention.query_key_value(block.input_layernorm(residual))
    values: Tensor = joint.reshape(len(residual), HEADS, 3, reference.d_head)[:, :, 2]
    return values


VALUES: dict[str, Callable[[Reference, int, Tensor], Tensor]] = {
    "llama": grouped_values,
    "gemma2": grouped_values,
    "gpt2": gpt2_values,
    "gpt_neox": gpt_neox_values,
}


def post_normed(reference: Reference, norm_name: str, layer: int, written: Tensor, whole: Tensor) -> Tensor:
    """Gemma 2's norm behind attention or the MLP, its scale that of the whole output."""
    norm = getattr(reference.blocks[layer], norm_name, None)
    if norm is None or "Gemma" not in type(norm).__name__:
        return written
    normed: Tensor = written / (whole.square().mean() + norm.eps).sqrt() * (1 + norm.weight)
    return normed


@pytest.mark.parametrize("family", FAMILIES)
def test_sources_are_what_each_token_gives_a_head_and_add_up_to_its_term(laboratory: Laboratory, family: str) -> None:
    outcome = run(laboratory, job(family, by_source=True))
    found = array(outcome.by_source)
    np.testing.assert_allclose(found.sum(axis=-1), array(outcome.terms.heads), atol=1e-4)
    reference = Reference(laboratory.folder(f"tiny-{family.replace('_', '-')}"))
    ids = outcome.examples[0].tokens.ids
    places = [("resid_post", LAYERS - 1), *(("resid_pre", layer) for layer in range(LAYERS))]
    taken = reference.activations(ids, places)
    with torch.no_grad():
        patterns = reference.model(torch.tensor([ids]), output_attentions=True).attentions
        share = Linearised(reference, taken["resid_post", LAYERS - 1][-1], direction(laboratory, reference, family))
        for layer in range(LAYERS):
            W_O, b_O = head_weights(reference, layer)
            by_head = W_O.reshape(HEADS, reference.d_head, -1)
            values = VALUES[family](reference, layer, taken["resid_pre", layer])
            weighted = patterns[layer][0, :, -1, :, None] * values.transpose(0, 1)
            written = torch.einsum("hsd,hdm->hsm", weighted, by_head)
            whole = written.sum((0, 1)) + (0.0 if b_O is None else b_O)
            through = post_normed(reference, "post_attention_layernorm", layer, written, whole)
            expected = [[share(source) for source in head] for head in through]
            np.testing.assert_allclose(found[layer], expected, atol=1e-4)


DOWN = {"llama": "mlp.down_proj", "gemma2": "mlp.down_proj", "gpt2": "mlp.c_proj", "gpt_neox": "mlp.dense_4h_to_h"}


def neurons_written_out(reference: Reference, family: str, ids: tuple[int, ...], share: Linearised) -> tuple[Any, Any]:
    """Every neuron's and every output bias's term, [layer, neuron] and [layer]."""
    by_neuron, of_bias = [], []
    for layer in range(LAYERS):
        down = reference.blocks[layer].get_submodule(DOWN[family])
        seen: list[Tensor] = []
        handle = down.register_forward_pre_hook(lambda _module, given, seen=seen: seen.append(given[0][0, -1]))
        reference.logits(ids)
        handle.remove()
        W_out = down.weight if type(down).__name__ == "Conv1D" else down.weight.T
        bias = torch.zeros(W_out.shape[1], dtype=W_out.dtype) if down.bias is None else down.bias
        written: Tensor = seen[0][:, None] * W_out
        whole = written.sum(0) + bias
        through = post_normed(reference, "post_feedforward_layernorm", layer, written, whole)
        by_neuron.append([share(neuron) for neuron in through])
        of_bias.append(share(post_normed(reference, "post_feedforward_layernorm", layer, bias, whole)))
    return np.array(by_neuron), np.array(of_bias)


@pytest.mark.parametrize("family", FAMILIES)
def test_neurons_are_the_strongest_and_add_up_with_the_bias_to_the_mlps_term(
    laboratory: Laboratory, family: str
) -> None:
    outcome = run(laboratory, job(family, neurons=100))
    reference = Reference(laboratory.folder(f"tiny-{family.replace('_', '-')}"))
    ids = outcome.examples[0].tokens.ids
    final = reference.activations(ids, [("resid_post", LAYERS - 1)])["resid_post", LAYERS - 1][-1]
    with torch.no_grad():
        share = Linearised(reference, final, direction(laboratory, reference, family))
        by_neuron, of_bias = neurons_written_out(reference, family, ids, share)
    np.testing.assert_allclose(by_neuron.sum(axis=1) + of_bias, array(outcome.terms.mlps), atol=1e-4)
    found = [neuron.contribution.mean for neuron in outcome.neurons]
    expected = [by_neuron[neuron.layer, neuron.neuron] for neuron in outcome.neurons]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    largest = np.sort(np.abs(by_neuron), axis=None)[::-1][:100]
    np.testing.assert_allclose(np.abs(found), largest, atol=1e-4)
    assert all(neuron.contribution.standard_error is None for neuron in outcome.neurons)


def test_over_many_examples_they_are_means_with_standard_errors(laboratory: Laboratory) -> None:
    method = {"by_position": True, "by_source": True, "neurons": 5}
    together = run(laboratory, job("llama", [EXAMPLE, OTHER], **method))
    alone = [run(laboratory, job("llama", [example], **(method | {"neurons": 100}))) for example in (EXAMPLE, OTHER)]
    for name in ("by_source", "by_position"):
        averaged = (
            getattr(together, name) if name == "by_source" else together.by_position and together.by_position.heads
        )
        own = [
            getattr(one, name) if name == "by_source" else one.by_position and one.by_position.heads for one in alone
        ]
        assert isinstance(averaged, Statistic)
        first, second = (array(estimate) for estimate in own)
        np.testing.assert_allclose(array(averaged.mean), (first + second) / 2, atol=1e-5)
        np.testing.assert_allclose(array(averaged.standard_error), np.abs(first - second) / 2, atol=1e-5)
    listed = [{(n.layer, n.neuron): n.contribution.mean for n in one.neurons} for one in alone]
    assert len(together.neurons) == 5
    for neuron in together.neurons:
        place = (neuron.layer, neuron.neuron)
        first, second = (own[place] for own in listed)
        assert neuron.contribution.count == 2
        assert neuron.contribution.mean == pytest.approx((first + second) / 2, abs=1e-5)
        assert neuron.contribution.standard_error == pytest.approx(abs(first - second) / 2, abs=1e-5)


@pytest.mark.parametrize("name", ["by_position", "by_source"])
def test_splits_over_positions_that_do_not_correspond_are_refused(laboratory: Laboratory, name: str) -> None:
    shorter = {"prompt": "The Eiffel Tower is in", "answer": " is", "foil": " John"}
    body = job("llama", [EXAMPLE, shorter], **{name: True})
    with pytest.raises(InvalidSpec, match="send one job per length") as refused:
        resolve(SPEC.validate_json(json.dumps(body)), laboratory.catalogue, Limits())
    (violation,) = refused.value.violations
    assert (violation.pointer, violation.code) == (f"/method/{name}", ErrorCode.UNEQUAL_LENGTHS)


def test_splits_that_need_a_hidden_site_are_refused_with_the_reason(laboratory: Laboratory) -> None:
    hidden = [
        SiteFacts(name=site, readable=False, writable=False, reason="it is fused")
        for site in (SiteName.PATTERN, SiteName.MLP_POST)
    ]
    facts = laboratory.catalogue.model("tiny-llama").model_copy(update={"sites": tuple(hidden)})
    method = DirectLogitAttribution(type="direct_logit_attribution", by_source=True, neurons=3)
    assert [violation.pointer for violation in method.violations(facts)] == ["/method/by_source", "/method/neurons"]


def test_a_model_of_attention_alone_has_sources_and_no_neurons(laboratory: Laboratory) -> None:
    outcome = run(laboratory, job("native_attention", by_source=True, by_position=True))
    np.testing.assert_allclose(array(outcome.by_source).sum(axis=-1), array(outcome.terms.heads), atol=1e-4)
    with pytest.raises(InvalidSpec, match="cannot read mlp_post"):
        run(laboratory, job("native_attention", neurons=3))


@pytest.mark.parametrize("examples", [[EXAMPLE], [EXAMPLE, OTHER]])
def test_the_estimate_is_the_bill_and_bounds_the_size(laboratory: Laboratory, examples: list[Any]) -> None:
    body = job("llama", examples, by_position=True, by_source=True, neurons=50)
    cost = resolve(SPEC.validate_json(json.dumps(body)), laboratory.catalogue, Limits()).cost
    result = laboratory.run(body)
    assert isinstance(result, AttributionResult)
    assert result.usage.token_layers == pytest.approx(cost.token_layers, rel=0.02)
    length = len(
        resolve(SPEC.validate_json(json.dumps(body)), laboratory.catalogue, Limits()).inputs.examples[0].prompt.ids
    )
    terms = LAYERS * (HEADS + 2) + 3
    floats = (terms * (length + 1) + LAYERS * HEADS * length) * len(examples)
    assert isinstance(result.attribution, DirectLogitOutcome)
    neurons = len(result.attribution.model_dump_json(include={"neurons"}))
    assert floats * 4 + neurons <= cost.output_bytes <= 2.5 * (floats * 4 + neurons)
