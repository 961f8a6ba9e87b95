"""Gradient × input and integrated gradients against autograd on plain transformers in float64."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float64
from torch import Tensor

from services.contracts.attribution import AttributionResult
from services.contracts.errors import ErrorCode, InvalidSpec
from services.contracts.gradient_x_input import GradientXInputOutcome
from services.contracts.integrated_gradients import IntegratedGradientsOutcome
from services.contracts.quadrature import nodes_of
from services.contracts.tensor import InlineTensor
from tests.brute_force import Reference
from tests.services.methods.conftest import FAMILIES, Laboratory

CLEAN = "When John and Mary went to the shops, John gave the bag to"
CORRUPTED = "When John and Mary went to the shops, Mary gave the bag to"
EXAMPLE = {"prompt": CLEAN, "answer": " Mary", "foil": " John"}
PAIR = {"clean": CLEAN, "corrupted": CORRUPTED, "answer": " Mary", "foil": " John"}
LOGIT_DIFF = {"type": "logit_diff"}

Embeddings = Float64[Tensor, "position d_model"]


def job(family: str, method: dict[str, Any], metric: dict[str, Any] = LOGIT_DIFF, **inputs: Any) -> dict[str, Any]:
    model = family if family.startswith("smollm2") else f"tiny-{family.replace('_', '-')}"
    return {"kind": "attribution", "model": model, "method": method, "metric": metric, **inputs}


def gradient_x_input(laboratory: Laboratory, body: dict[str, Any]) -> GradientXInputOutcome:
    result = laboratory.run(body)
    assert isinstance(result, AttributionResult)
    assert isinstance(result.attribution, GradientXInputOutcome)
    return result.attribution


def integrated(laboratory: Laboratory, body: dict[str, Any]) -> IntegratedGradientsOutcome:
    result = laboratory.run(body)
    assert isinstance(result, AttributionResult)
    assert isinstance(result.attribution, IntegratedGradientsOutcome)
    return result.attribution


def array(tensor: Any) -> Any:
    assert isinstance(tensor, InlineTensor)
    return tensor.array()


class Differentiable:
    """A plain model in float64 as a function of its token embeddings."""

    def __init__(self, laboratory: Laboratory, model: str) -> None:
        self.model = Reference(laboratory.folder(model)).model
        tokenizer = laboratory.catalogue.tokenizer(model)
        self.mary, self.john = (tokenizer.read(name, bos=False).ids[0] for name in (" Mary", " John"))

    def embeddings(self, ids: Sequence[int]) -> Embeddings:
        with torch.no_grad():
            found: Tensor = self.model.get_input_embeddings()(torch.tensor(list(ids)))
        return found

    def metric(self, embeddings: Embeddings, metric: dict[str, Any], ids: Sequence[int]) -> Tensor:
        """The metrics by their definitions; `ids` are the clean run's tokens."""
        logits = self._logits(embeddings, ids)
        probabilities = logits.softmax(-1)
        match metric["type"]:
            case "logit_diff":
                return logits[-1, self.mary] - logits[-1, self.john]
            case "log_prob":
                return probabilities[-1, self.mary].log()
            case "prob_diff":
                return probabilities[-1, self.mary] - probabilities[-1, self.john]
            case _:
                targets = list(ids[1:])
                return -probabilities[range(len(targets)), targets].log().mean()

    @torch.no_grad()
    def value(self, embeddings: Embeddings, metric: dict[str, Any], ids: Sequence[int]) -> float:
        return float(self.metric(embeddings, metric, ids))

    def gradient(self, embeddings: Embeddings, metric: dict[str, Any], ids: Sequence[int]) -> Embeddings:
        leaf = embeddings.clone().requires_grad_()
        (found,) = torch.autograd.grad(self.metric(leaf, metric, ids), leaf)
        return found

    def _logits(self, embeddings: Embeddings, ids: Sequence[int]) -> Tensor:
        """With the embedding module's own output replaced: what comes before and after it is the model's."""
        handle = self.model.get_input_embeddings().register_forward_hook(lambda *_: embeddings[None])
        try:
            logits: Tensor = self.model(torch.tensor([list(ids)]), use_cache=False).logits[0]
        finally:
            handle.remove()
        return logits


METRICS = (
    LOGIT_DIFF,
    {"type": "log_prob"},
    {"type": "prob_diff", "answers": [" Mary"], "foils": [" John"]},
    {"type": "cross_entropy"},
)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric["type"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_x_input_equals_autograd_in_float64(
    laboratory: Laboratory, family: str, metric: dict[str, Any]
) -> None:
    body = job(family, {"type": "gradient_x_input"}, metric, examples=[EXAMPLE])
    (example,) = gradient_x_input(laboratory, body).examples
    plain = Differentiable(laboratory, body["model"])
    ids = example.tokens.ids
    embeddings = plain.embeddings(ids)
    expected = (embeddings * plain.gradient(embeddings, metric, ids)).sum(-1)
    scale = float(expected.abs().max())
    np.testing.assert_allclose(array(example.attributions), expected.numpy(), atol=1e-4 * scale)
    assert example.metric == pytest.approx(plain.value(embeddings, metric, ids), abs=1e-4)


@pytest.mark.parametrize("quadrature", ["midpoint", "trapezoid", "left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_integrated_gradients_equal_the_same_sum_in_float64(
    laboratory: Laboratory, family: str, quadrature: Any
) -> None:
    method = {"type": "integrated_gradients", "steps": 4, "quadrature": quadrature}
    body = job(family, method, pairs=[PAIR])
    (example,) = integrated(laboratory, body).examples
    assert example.baseline_tokens is not None
    plain = Differentiable(laboratory, body["model"])
    end, start = plain.embeddings(example.tokens.ids), plain.embeddings(example.baseline_tokens.ids)
    ids = example.tokens.ids
    gradients = [
        weight * plain.gradient(start + alpha * (end - start), LOGIT_DIFF, ids)
        for alpha, weight in nodes_of(quadrature, 4)
    ]
    expected = ((end - start) * torch.stack(gradients).sum(0)).sum(-1)
    np.testing.assert_allclose(array(example.attributions), expected.numpy(), atol=1e-4 * float(expected.abs().max()))
    assert example.baseline_metric == pytest.approx(plain.value(start, LOGIT_DIFF, ids), abs=1e-4)


@pytest.mark.parametrize(
    ("quadrature", "points"),
    [
        ("midpoint", ((0.25, 0.5), (0.75, 0.5))),
        ("trapezoid", ((0.0, 0.5), (1.0, 0.5))),
        ("left", ((0.0, 0.5), (0.5, 0.5))),
        ("right", ((0.5, 0.5), (1.0, 0.5))),
    ],
)
def test_quadratures_are_what_their_names_say(quadrature: Any, points: Any) -> None:
    assert nodes_of(quadrature, 2) == points
    assert sum(weight for _, weight in nodes_of(quadrature, 7)) == pytest.approx(1.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_from_the_corrupted_prompt_the_shares_add_up_to_the_change_of_the_metric(
    laboratory: Laboratory, family: str
) -> None:
    other = PAIR | {"clean": CLEAN[: CLEAN.index(" gave")], "corrupted": CORRUPTED[: CORRUPTED.index(" gave")]}
    body = job(family, {"type": "integrated_gradients", "steps": 200}, pairs=[PAIR, other])
    for example in integrated(laboratory, body).examples:
        change = example.metric - example.baseline_metric
        assert example.completeness_gap == pytest.approx(change - example.sum, abs=1e-6)
        assert example.sum == pytest.approx(float(array(example.attributions).sum()), abs=1e-5)
        assert abs(example.completeness_gap) < 0.01 * abs(change)


@pytest.mark.parametrize("baseline", ["zero", "mean_embedding"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_baseline_by_name_is_what_it_says(laboratory: Laboratory, family: str, baseline: str) -> None:
    method = {"type": "integrated_gradients", "baseline": baseline, "steps": 2}
    body = job(family, method, examples=[EXAMPLE])
    outcome = integrated(laboratory, body)
    (example,) = outcome.examples
    plain = Differentiable(laboratory, body["model"])
    ids = example.tokens.ids
    end = plain.embeddings(ids)
    vocabulary = plain.model.get_input_embeddings().weight.shape[0]
    mean = plain.embeddings(range(vocabulary)).mean(0)
    start = torch.zeros_like(end) if baseline == "zero" else mean.expand_as(end)
    gradients = [plain.gradient(start + alpha * (end - start), LOGIT_DIFF, ids) for alpha in (0.25, 0.75)]
    expected = ((end - start) * torch.stack(gradients).mean(0)).sum(-1)
    np.testing.assert_allclose(array(example.attributions), expected.numpy(), atol=1e-4 * float(expected.abs().max()))
    assert example.baseline_metric == pytest.approx(plain.value(start, LOGIT_DIFF, ids), abs=1e-4)
    assert example.baseline_tokens is None
    assert outcome.baseline == baseline


def test_smollm2s_integrated_gradients_complete_to_one_percent(smollm2: Laboratory) -> None:
    body = job("smollm2-135m", {"type": "integrated_gradients"}, pairs=[PAIR])
    (example,) = integrated(smollm2, body).examples
    change = example.metric - example.baseline_metric
    assert change == pytest.approx(3.12 + 4.16, abs=0.05)
    assert abs(example.completeness_gap) < 0.01 * change
    differing = [a != b for a, b in zip(example.tokens.ids, example.baseline_tokens.ids, strict=True)]  # type: ignore[union-attr]
    assert np.count_nonzero(array(example.attributions)) == sum(differing) == 1


def refusal(laboratory: Laboratory, body: dict[str, Any]) -> tuple[str, ErrorCode, str]:
    with pytest.raises(InvalidSpec) as refused:
        laboratory.run(body)
    (violation,) = refused.value.violations
    return violation.pointer, violation.code, violation.message


def test_what_a_method_cannot_use_is_refused_before_queueing(laboratory: Laboratory) -> None:
    kl = {"type": "kl_divergence"}
    pointer, code, message = refusal(laboratory, job("llama", {"type": "gradient_x_input"}, kl, examples=[EXAMPLE]))
    assert (pointer, code) == ("/metric/type", ErrorCode.UNSUPPORTED_METRIC)
    assert "its gradient there is zero" in message
    method = {"type": "integrated_gradients", "baseline": "zero"}
    with pytest.raises(InvalidSpec, match="works on `examples`"):
        laboratory.run(job("llama", method, pairs=[PAIR]))
    with pytest.raises(InvalidSpec, match="works on `pairs`"):
        laboratory.run(job("llama", {"type": "integrated_gradients"}, examples=[EXAMPLE]))
    trapezoid = {"type": "integrated_gradients", "quadrature": "trapezoid", "steps": 1}
    pointer, _, message = refusal(laboratory, job("llama", trapezoid, pairs=[PAIR]))
    assert pointer == "/method/steps"
    assert "at least 2 steps" in message


def test_the_divergence_from_the_clean_run_can_be_integrated(laboratory: Laboratory) -> None:
    body = job("llama", {"type": "integrated_gradients", "steps": 200}, {"type": "kl_divergence"}, pairs=[PAIR])
    (example,) = integrated(laboratory, body).examples
    assert example.metric == pytest.approx(0.0, abs=1e-6)
    assert example.baseline_metric > 0
    assert abs(example.completeness_gap) < 0.01 * example.baseline_metric
