"""Interventions against plain float64 forward passes with the same changes made by hand."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from services.catalogue.resolve import Limits, resolve
from services.contracts.errors import ErrorCode, InvalidSpec, Violation
from services.contracts.intervention import InterventionResult
from services.contracts.tensor import InlineTensor
from tests.brute_force import Reference
from tests.families import D_MODEL, HEADS
from tests.services.methods.conftest import FAMILIES, SPEC, Laboratory

PROMPT = "When John and Mary went to the shops, John gave the bag to"
OTHER = "When John and Mary went to the shops, Mary gave the bag to"
EXAMPLE = {"prompt": PROMPT, "answer": " Mary", "foil": " John"}
TOLERANCE = 2e-5
D_HEAD = {"gpt2": 8, "llama": 12, "gpt_neox": 8, "gemma2": 12}

Change = Callable[[Tensor], Tensor]


def arrays(tensors: tuple[Any, ...]) -> list[np.ndarray[Any, Any]]:
    assert all(isinstance(tensor, InlineTensor) for tensor in tensors)
    return [tensor.array() for tensor in tensors]


def job(family: str, *interventions: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "kind": "intervention",
        "model": f"tiny-{family.replace('_', '-')}",
        "examples": [EXAMPLE],
        "interventions": list(interventions),
        "metric": {"type": "logit_diff"},
        **changes,
    }


def run(laboratory: Laboratory, body: dict[str, Any]) -> InterventionResult:
    result = laboratory.run(body)
    assert isinstance(result, InterventionResult)
    return result


def vector(width: int) -> dict[str, Any]:
    return {"type": "vector", "values": [float(value) for value in np.linspace(-1, 2, width).round(3)]}


def written(operation: str, value: Tensor | float) -> Change:
    """What an operation does to the part of an activation that it is about."""
    return {
        "set": lambda there: torch.zeros_like(there) + value,
        "add": lambda there: there + value,
        "scale": lambda there: there * value,
    }[operation]


def at(rows: list[int] | slice, columns: slice, change: Change) -> Change:
    def changed(activation: Tensor) -> Tensor:
        new = activation.clone()
        new[rows, columns] = change(activation[rows, columns])
        return new

    return changed


def metric_of(laboratory: Laboratory, body: dict[str, Any], logits: Tensor) -> float:
    tokenizer = laboratory.catalogue.tokenizer(body["model"])
    mary, john = (tokenizer.read(text, bos=False).ids[0] for text in (" Mary", " John"))
    return float(logits[-1, mary] - logits[-1, john])


@pytest.mark.parametrize(
    ("kind", "operation"),
    [
        *((kind, operation) for kind in ("number", "vector") for operation in ("set", "add", "scale")),
        ("run", "set"),
        ("run", "add"),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_operation_with_every_kind_of_value_does_what_it_says(
    laboratory: Laboratory, family: str, kind: str, operation: str
) -> None:
    """A head of layer 1 at two positions, then the whole MLP of layer 2 everywhere."""
    width = D_HEAD[family]
    values = {
        "number": (0.5, -0.25),
        "vector": (vector(width), vector(D_MODEL)),
        "run": ({"type": "run", "prompt": OTHER},) * 2,
    }[kind]
    body = job(
        family,
        {"site": "z", "layer": 1, "head": 2, "positions": [-5, -1], "operation": operation, "value": values[0]},
        {"site": "blocks.2.hook_mlp_out", "operation": operation, "value": values[1]},
    )
    result = run(laboratory, body)
    (example,) = result.examples
    reference = Reference(laboratory.folder(body["model"]))
    tokens, length = example.tokens.ids, len(example.tokens.ids)
    rows, columns = [length - 5, length - 1], slice(2 * width, 3 * width)
    if kind == "run":
        other = laboratory.catalogue.tokenizer(body["model"]).read(OTHER, bos=example.tokens.bos_prepended).ids
        taken = reference.activations(other, [("z", 1), ("mlp_out", 2)])
        head, mlp = taken["z", 1][rows, columns], taken["mlp_out", 2]
    else:
        head, mlp = (
            torch.tensor(value["values"] if isinstance(value, dict) else value, dtype=torch.float64) for value in values
        )
    changes = {
        ("z", 1): at(rows, columns, written(operation, head)),
        ("mlp_out", 2): at(slice(None), slice(None), written(operation, mlp)),
    }
    unpatched = metric_of(laboratory, body, reference.logits(tokens))
    patched = metric_of(laboratory, body, reference.logits(tokens, changes))
    assert abs(patched - unpatched) > 100 * TOLERANCE, "the reference itself must see an effect"
    assert example.metric is not None
    assert example.metric.unpatched == pytest.approx(unpatched, abs=1e-4)
    assert example.metric.patched == pytest.approx(patched, abs=1e-4)
    assert example.metric.effect == pytest.approx(patched - unpatched, abs=1e-4)
    assert result.effect is not None
    assert (result.effect.mean, result.effect.count) == (example.metric.effect, 1)
    assert result.effect.standard_error is None


def test_interventions_at_one_site_apply_in_their_order(laboratory: Laboratory) -> None:
    doubled = {"site": "resid_pre", "layer": 1, "operation": "scale", "value": 2.0}
    shifted = {"site": "resid_pre", "layer": 1, "operation": "add", "value": vector(D_MODEL)}
    one_way, other_way = (job("llama", *order) for order in ((doubled, shifted), (shifted, doubled)))
    reference = Reference(laboratory.folder("tiny-llama"))
    shift = torch.tensor(vector(D_MODEL)["values"], dtype=torch.float64)
    hands: tuple[Change, Change] = (lambda x: 2 * x + shift, lambda x: 2 * (x + shift))
    for body, change in zip((one_way, other_way), hands, strict=True):
        (example,) = run(laboratory, body).examples
        expected = metric_of(laboratory, body, reference.logits(example.tokens.ids, {("resid_pre", 1): change}))
        assert example.metric is not None
        assert example.metric.patched == pytest.approx(expected, abs=1e-4)


def test_a_vector_for_all_heads_goes_head_after_head(laboratory: Laboratory) -> None:
    body = job("llama", {"site": "z", "layer": 0, "operation": "set", "value": vector(HEADS * 12)})
    (example,) = run(laboratory, body).examples
    values = torch.tensor(vector(HEADS * 12)["values"], dtype=torch.float64)
    reference = Reference(laboratory.folder("tiny-llama"))
    logits = reference.logits(example.tokens.ids, {("z", 0): values.expand_as})
    assert example.metric is not None
    assert example.metric.patched == pytest.approx(metric_of(laboratory, body, logits), abs=1e-4)


def test_top_tokens_and_activations_are_those_of_the_patched_run(laboratory: Laboratory) -> None:
    head = {"site": "z", "layer": 1, "head": 2}
    body = job(
        "gpt2",
        head | {"operation": "set", "value": 1.5},
        metric=None,
        top_k=3,
        position=-2,
        activations=[
            head | {"positions": [-1, 0]},
            {"site": "resid_post", "layer": 1},
            {"site": "pattern", "layer": 2},
        ],
    )
    result = run(laboratory, body)
    (example,) = result.examples
    assert (result.effect, example.metric) == (None, None)
    z, residual, pattern = example.activations
    z_there, residual_there, pattern_there = arrays(example.activations)
    assert z.dims == ("position", "d_head")
    np.testing.assert_array_equal(z_there, np.full((2, 8), 1.5))
    reference = Reference(laboratory.folder("tiny-gpt2"))
    seen: list[Tensor] = []

    def keep(activation: Tensor) -> Tensor:
        seen.append(activation)
        return activation

    changes = {("z", 1): at(slice(None), slice(16, 24), lambda z: torch.full_like(z, 1.5)), ("resid_post", 1): keep}
    patched = reference.logits(example.tokens.ids, changes)
    assert residual.dims == ("position", "d_model")
    np.testing.assert_allclose(residual_there, seen[0], atol=1e-4)
    assert pattern.dims == ("query", "head", "key")
    np.testing.assert_allclose(pattern_there.sum(-1), 1.0, atol=1e-5)
    assert example.top is not None
    for found, logits in (
        (example.top.unpatched, reference.logits(example.tokens.ids)),
        (example.top.patched, patched),
    ):
        expected = logits[-2].topk(3)
        assert [token.token_id for token in found] == expected.indices.tolist()
        np.testing.assert_allclose([token.logit for token in found], expected.values, atol=1e-4)


def test_many_examples_give_a_mean_and_its_standard_error(laboratory: Laboratory) -> None:
    prompts = (PROMPT, OTHER, "The Eiffel Tower is in Paris and")
    body = job(
        "llama",
        {"site": "mlp_out", "layer": 1, "operation": "set", "value": 0.0},
        examples=[EXAMPLE | {"prompt": prompt} for prompt in prompts],
    )
    result = run(laboratory, body)
    effects = [example.metric.effect for example in result.examples if example.metric is not None]
    assert len(set(effects)) == 3
    assert result.effect is not None
    assert result.effect.count == 3
    assert result.effect.mean == pytest.approx(np.mean(effects))
    assert result.effect.standard_error == pytest.approx(np.std(effects, ddof=1) / 3**0.5)


def test_scaling_a_heads_scores_is_a_softer_or_sharper_pattern(laboratory: Laboratory) -> None:
    place = {"layer": 1, "head": 2}
    body = job(
        "gpt2",
        {"site": "attn_scores", **place, "operation": "scale", "value": 3.0},
        metric=None,
        activations=[{"site": "pattern", **place}],
    )
    plain = job("gpt2", {"site": "z", "layer": 2, "operation": "add", "value": 0.0}, metric=None)
    plain["activations"] = [{"site": "attn_scores", **place}]
    (sharp,) = arrays(run(laboratory, body).examples[0].activations)
    (scores,) = arrays(run(laboratory, plain).examples[0].activations)
    masked = torch.tensor(scores).nan_to_num(-torch.inf, neginf=-torch.inf)
    np.testing.assert_allclose(sharp, (3 * masked).softmax(-1), atol=1e-5)


def test_a_pattern_of_zero_is_a_head_that_reads_nothing(laboratory: Laboratory) -> None:
    pattern, z = (
        job("llama", {"site": site, "layer": 1, "head": 2, "operation": "set", "value": 0.0})
        for site in ("pattern", "z")
    )
    results = [run(laboratory, body).examples[0].metric for body in (pattern, z)]
    assert results[0] is not None
    assert results[1] is not None
    assert results[0].effect == pytest.approx(results[1].effect, abs=1e-5)


def refused(laboratory: Laboratory, body: dict[str, Any]) -> Violation:
    with pytest.raises(InvalidSpec) as error:
        resolve(SPEC.validate_json(json.dumps(body)), laboratory.catalogue, Limits())
    (violation,) = error.value.violations
    return violation


SET = {"operation": "set", "value": 0.0}


@pytest.mark.parametrize(
    ("intervention", "pointer", "code", "message"),
    [
        (
            {"site": "resid_pre", "layer": 0, "operation": "set", "value": vector(31)},
            "/value/values",
            ErrorCode.INVALID_REQUEST,
            "a vector of 31 values: resid_pre of tiny-llama takes d_model = 32",
        ),
        (
            {"site": "mlp_post", "layer": 0, "operation": "set", "value": vector(32)},
            "/value/values",
            ErrorCode.INVALID_REQUEST,
            "takes d_mlp = 48",
        ),
        (
            {"site": "v", "layer": 0, "operation": "add", "value": vector(48)},
            "/value/values",
            ErrorCode.INVALID_REQUEST,
            "takes 2 heads × d_head 12 = 24, or 12 with `head`",
        ),
        (
            {"site": "z", "layer": 0, "head": 1, "operation": "add", "value": vector(48)},
            "/value/values",
            ErrorCode.INVALID_REQUEST,
            "takes d_head = 12 for one head",
        ),
        (
            {"site": "pattern", "layer": 0, "operation": "set", "value": vector(15)},
            "/value",
            ErrorCode.INVALID_REQUEST,
            "as wide as the prompt",
        ),
        (
            {"site": "pattern", "layer": 0, "operation": "add", "value": 0.5},
            "/value",
            ErrorCode.INVALID_REQUEST,
            "attend to later ones",
        ),
        (
            {"site": "attn_scores", "layer": 0, "operation": "set", "value": 0.0},
            "/value",
            ErrorCode.INVALID_REQUEST,
            "scale by more than 0",
        ),
        (
            {"site": "z", "layer": 0, "operation": "scale", "value": {"type": "run", "prompt": OTHER}},
            "/operation",
            ErrorCode.INVALID_REQUEST,
            "set or add",
        ),
        ({"site": "hook_bogus", **SET}, "/site", ErrorCode.UNKNOWN_SITE, "no site or hook 'hook_bogus'"),
        ({"site": "blocks.7.hook_resid_pre", **SET}, "/site", ErrorCode.UNKNOWN_LAYER, "layer 7 does not exist"),
        ({"site": "k", "layer": 0, "head": 2, **SET}, "/head", ErrorCode.UNKNOWN_HEAD, "heads 0..1"),
        ({"site": "z", "layer": 0, "positions": [40], **SET}, "/positions/0", ErrorCode.UNKNOWN_POSITION, "40"),
        (
            {"site": "z", "layer": 0, "operation": "set", "value": {"type": "run", "prompt": "The Eiffel Tower"}},
            "/value/prompt",
            ErrorCode.UNEQUAL_LENGTHS,
            "they must be equally many",
        ),
        (
            {
                "site": "z",
                "layer": 0,
                "positions": [0, -1],
                "operation": "set",
                "value": {"type": "run", "prompt": "The Eiffel Tower"},
            },
            "/value/prompt",
            ErrorCode.UNEQUAL_LENGTHS,
            "nothing at position",
        ),
    ],
)
def test_what_does_not_fit_is_refused_where_it_stands(
    laboratory: Laboratory, intervention: dict[str, Any], pointer: str, code: ErrorCode, message: str
) -> None:
    body = job("llama", {"site": "z", "layer": 0, **SET}, intervention)
    violation = refused(laboratory, body)
    assert violation.pointer == f"/interventions/1{pointer}"
    assert violation.code is code
    assert message in violation.message


@pytest.mark.parametrize("value", ["NaN", "Infinity", '{"type": "vector", "values": [1.0, NaN]}'])
def test_a_value_that_is_not_finite_is_refused(value: str) -> None:
    body = json.dumps(job("llama", {"site": "z", "layer": 0, "operation": "set", "value": "HERE"}))
    with pytest.raises(ValueError, match="finite number") as error:
        SPEC.validate_json(body.replace('"HERE"', value))
    detail, *_ = error.value.errors()  # type: ignore[attr-defined]  # pydantic's ValidationError
    assert detail["type"] == "finite_number"
    assert detail["loc"][:4] == ("intervention", "interventions", 0, "value")


def test_a_job_that_would_read_nothing_is_refused(laboratory: Laboratory) -> None:
    violation = refused(laboratory, job("llama", {"site": "z", "layer": 0, **SET}, metric=None))
    assert "nothing would be read" in violation.message


def test_a_position_for_top_tokens_that_does_not_exist_is_refused(laboratory: Laboratory) -> None:
    violation = refused(laboratory, job("llama", {"site": "z", "layer": 0, **SET}, top_k=1, position=-40))
    assert (violation.pointer, violation.code) == ("/position", ErrorCode.UNKNOWN_POSITION)
