"""Direct logit attribution against the same sums written out on Hugging Face's own modules in float64."""

from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from services.contracts.attribution import AttributionResult
from services.contracts.direct_logit_attribution import DirectLogitOutcome
from services.contracts.tensor import InlineTensor, Statistic
from tests.brute_force import Reference
from tests.families import NATIVES
from tests.services.methods.conftest import FAMILIES, Laboratory

PROMPT = "When John and Mary went to the shops, John gave the bag to"
EXAMPLE = {"prompt": PROMPT, "answer": " Mary", "foil": " John"}


def job(family: str, **changes: Any) -> dict[str, Any]:
    model = family if family.startswith("smollm2") else f"tiny-{family.replace('_', '-')}"
    method = {"type": "direct_logit_attribution"}
    return {"kind": "attribution", "model": model, "method": method, "examples": [EXAMPLE], **changes}


def run(laboratory: Laboratory, body: dict[str, Any]) -> DirectLogitOutcome:
    result = laboratory.run(body)
    assert isinstance(result, AttributionResult)
    assert result.warnings == ()
    assert isinstance(result.attribution, DirectLogitOutcome)
    return result.attribution


def array(estimate: Any) -> Any:
    assert isinstance(estimate, InlineTensor)
    return estimate.array()


def head_weights(reference: Reference, layer: int) -> tuple[Tensor, Tensor | None]:
    """W_O as [head · d_head, d_model] and b_O; GPT-2 keeps its weights transposed."""
    projection = reference.projection(layer)
    conv1d = type(projection).__name__ == "Conv1D"
    return (projection.weight if conv1d else projection.weight.T), projection.bias


class Linearised:
    """The final norm of one run as a linear map into the metric's direction, its scale held."""

    def __init__(self, reference: Reference, final: Tensor, direction: Tensor) -> None:
        self.norm = reference.model.get_submodule(reference.layout.final_norm)
        self.centres = isinstance(self.norm, torch.nn.LayerNorm)
        is_gemma = "Gemma" in type(self.norm).__name__
        self.gain = self.norm.weight + 1 if is_gemma else self.norm.weight
        eps = self.norm.eps if hasattr(self.norm, "eps") else self.norm.variance_epsilon
        centred = final - final.mean() if self.centres else final
        self.scale = (centred.square().mean() + eps).sqrt()
        self.direction = direction

    def __call__(self, term: Tensor) -> float:
        centred = term - term.mean() if self.centres else term
        return float((centred / self.scale * self.gain) @ self.direction)


@pytest.mark.parametrize("metric", ["logit", "logit_diff"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_term_equals_the_hand_written_sum(laboratory: Laboratory, family: str, metric: str) -> None:
    body = job(family, metric={"type": metric, "position": -2})
    result = run(laboratory, body)
    reference = Reference(laboratory.folder(body["model"]))
    layers = range(len(reference.blocks))
    ids = result.examples[0].tokens.ids
    mary, john = (
        laboratory.catalogue.tokenizer(body["model"]).read(name, bos=False).ids[0] for name in (" Mary", " John")
    )
    places = [("resid_pre", 0), ("resid_post", layers[-1])]
    places += [(site, layer) for layer in layers for site in ("z", "attn_out", "mlp_out")]
    taken = {place: activation[-2] for place, activation in reference.activations(ids, places).items()}
    W_U = reference.model.get_output_embeddings().weight
    direction = W_U[mary] - W_U[john] if metric == "logit_diff" else W_U[mary]
    with torch.no_grad():
        share = Linearised(reference, taken["resid_post", layers[-1]], direction)
        np.testing.assert_allclose(array(result.terms.embedding), share(taken["resid_pre", 0]), atol=1e-4)
        mlps = [share(taken["mlp_out", layer]) for layer in layers]
        np.testing.assert_allclose(array(result.terms.mlps), mlps, atol=1e-4)
        attention = [share(taken["attn_out", layer]) for layer in layers]
        sums = array(result.terms.heads).sum(axis=1) + array(result.terms.attention_bias)
        np.testing.assert_allclose(sums, attention, atol=1e-4)
        if family != "gemma2":  # its post-norm stands between a head and the residual stream: next test
            for layer in layers:
                W_O, b_O = head_weights(reference, layer)
                z = taken["z", layer].reshape(-1, reference.d_head)
                by_head = torch.einsum("hd,hdm->hm", z, W_O.reshape(len(z), reference.d_head, -1))
                expected = [share(head) for head in by_head]
                np.testing.assert_allclose(array(result.terms.heads)[layer], expected, atol=1e-4)
                bias = 0.0 if b_O is None else share(b_O)
                np.testing.assert_allclose(array(result.terms.attention_bias)[layer], bias, atol=1e-4)


def test_heads_of_a_post_norm_family_pass_its_norm_at_the_runs_scale(laboratory: Laboratory) -> None:
    result = run(laboratory, job("gemma2"))
    reference = Reference(laboratory.folder("tiny-gemma2"))
    ids = result.examples[0].tokens.ids
    mary, john = (
        laboratory.catalogue.tokenizer("tiny-gemma2").read(name, bos=False).ids[0] for name in (" Mary", " John")
    )
    final = reference.activations(ids, [("resid_post", 2)])["resid_post", 2][-1]
    W_U = reference.model.get_output_embeddings().weight
    with torch.no_grad():
        share = Linearised(reference, final, W_U[mary] - W_U[john])
        z = reference.activations(ids, [("z", 1)])["z", 1][-1]
        W_O, _ = head_weights(reference, 1)
        outputs = torch.einsum("hd,hdm->hm", z.reshape(-1, 12), W_O.reshape(4, 12, -1))
        post = reference.blocks[1].post_attention_layernorm
        scale = (outputs.sum(0).square().mean() + post.eps).sqrt()
        expected = [share(output / scale * (1 + post.weight)) for output in outputs]
    np.testing.assert_allclose(array(result.terms.heads)[1], expected, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_terms_add_up_to_the_metric_before_any_soft_cap(laboratory: Laboratory, family: str) -> None:
    result = run(laboratory, job(family))
    (example,) = result.examples
    terms = [array(term) for term in (result.terms.embedding, result.terms.heads, result.terms.mlps)]
    magnitude = sum(np.abs(term).sum() for term in terms)
    assert example.gap == abs(example.metric - example.sum_of_terms)
    assert example.gap <= 1e-4 * magnitude
    reference = Reference(laboratory.folder(f"tiny-{family.replace('_', '-')}"))
    cap = getattr(reference.model.config, "final_logit_softcapping", None)
    logits = reference.logits(example.tokens.ids)[-1]
    raw = logits if cap is None else cap * (logits / cap).atanh()
    tokenizer = laboratory.catalogue.tokenizer(f"tiny-{family.replace('_', '-')}")
    mary, john = (tokenizer.read(name, bos=False).ids[0] for name in (" Mary", " John"))
    assert example.metric == pytest.approx(float(raw[mary] - raw[john]), abs=1e-3)


@pytest.mark.parametrize("native", NATIVES)
def test_terms_of_a_native_model_are_the_sums_over_its_own_weights(laboratory: Laboratory, native: str) -> None:
    body = job(native, metric={"type": "logit_diff", "position": -2})
    result = run(laboratory, body)
    config, model = NATIVES[native], laboratory.model(body["model"])
    weights = load_file(laboratory.folder(body["model"]) / "model.safetensors")
    tokenizer = laboratory.catalogue.tokenizer(body["model"])
    mary, john = (tokenizer.read(name, bos=False).ids[0] for name in (" Mary", " John"))
    with torch.no_grad():
        _, cache = model.bridge.run_with_cache(torch.tensor([result.examples[0].tokens.ids]))
    last = cache[f"blocks.{config.n_layers - 1}.hook_resid_post"][0, -2]

    def centre(term: Tensor) -> Tensor:
        return term - term.mean(-1, keepdim=True) if config.normalization_type == "LN" else term

    scale = (centre(last).square().mean() + 1e-5).sqrt()
    direction = weights["head.weight"][mary] - weights["head.weight"][john]

    def share(term: Tensor) -> Any:
        return (centre(term) / scale * weights["ln_out.weight"] @ direction).numpy()

    for layer in range(config.n_layers):
        z, W_O = cache[f"blocks.{layer}.attn.hook_z"][0, -2], weights[f"layers.{layer}.attn.o.weight"]
        heads = torch.einsum("hd,mhd->hm", z, W_O.reshape(config.d_model, config.n_heads, config.d_head))
        np.testing.assert_allclose(array(result.terms.heads)[layer], share(heads), atol=1e-4)
        bias = share(weights[f"layers.{layer}.attn.o.bias"])
        np.testing.assert_allclose(array(result.terms.attention_bias)[layer], bias, atol=1e-4)
        mlp = 0.0 if config.attn_only else share(cache[f"blocks.{layer}.hook_mlp_out"][0, -2])
        np.testing.assert_allclose(array(result.terms.mlps)[layer], mlp, atol=1e-4)
    np.testing.assert_allclose(array(result.terms.embedding), share(cache["blocks.0.hook_resid_pre"][0, -2]), atol=1e-4)
    (example,) = result.examples
    assert example.gap < 1e-4 * max(1.0, abs(example.metric))


def test_many_examples_give_means_and_their_own_terms_when_asked(laboratory: Laboratory) -> None:
    other = {"prompt": "The Eiffel Tower is in", "answer": " is", "foil": " John"}
    together = run(laboratory, job("llama", examples=[EXAMPLE, other], per_example=True))
    alone = [run(laboratory, job("llama", examples=[example])) for example in (EXAMPLE, other)]
    heads = np.stack([array(result.terms.heads) for result in alone])
    assert isinstance(together.terms.heads, Statistic)
    np.testing.assert_allclose(array(together.terms.heads.mean), heads.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(array(together.terms.heads.standard_error), np.abs(heads[0] - heads[1]) / 2, atol=1e-5)
    for example, expected in zip(together.examples, heads, strict=True):
        assert example.terms is not None
        np.testing.assert_allclose(array(example.terms.heads), expected, atol=1e-5)


def test_smollm2s_terms_add_up_to_the_known_logit_difference(smollm2: Laboratory) -> None:
    result = run(smollm2, job("smollm2-135m"))
    (example,) = result.examples
    assert example.metric == pytest.approx(3.12, abs=0.02)
    assert example.sum_of_terms == pytest.approx(example.metric, abs=2e-3)
    assert array(result.terms.heads).shape == (30, 9)
