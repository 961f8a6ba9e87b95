"""Directions against plain float64 activations, and statistics written out by hand."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from services.contracts.direction import DirectionResult
from services.contracts.errors import ErrorCode, InvalidSpec, JobFailed
from services.contracts.generation import GenerationResult
from services.contracts.tensor import InlineTensor, Tensor
from tests.brute_force import Reference
from tests.services.methods.conftest import Laboratory

POSITIVE = ["When John and Mary went", "John is in Paris", "Mary gave the bag to", "The Eiffel Tower is"]
NEGATIVE = ["Paris is in the", "The shops", "the bag and the shops, John gave", "Mary and John"]
JOB = {"kind": "direction", "model": "tiny-llama", "positive": POSITIVE, "negative": NEGATIVE}
ONE_TOKEN = {"type": "tokens", "tokens": [5]}
HELD_OUT = {"fraction": 0.5, "seed": 4}

Array = npt.NDArray[np.float64]


def run(laboratory: Laboratory, **body: Any) -> DirectionResult:
    result = laboratory.run(JOB | body)
    assert isinstance(result, DirectionResult)
    return result


def array(tensor: Tensor) -> npt.NDArray[np.float32]:
    assert isinstance(tensor, InlineTensor)
    return tensor.array()


def activations(laboratory: Laboratory, result: DirectionResult, place: tuple[str, int]) -> tuple[Array, Array]:
    """Of both sets, [prompt, d_model], by hand."""
    reference = Reference(laboratory.folder("tiny-llama"))

    def taken(ids: tuple[int, ...]) -> Array:
        x: Array = reference.activations(ids, [place])[place].numpy()
        match result.position:
            case "last":
                return np.asarray(x[-1])
            case "mean":
                return np.asarray(x[1:].mean(axis=0))
            case index:
                return np.asarray(x[index])

    sets = (result.positive, result.negative)
    positive, negative = (np.stack([taken(prompt.ids) for prompt in one.tokens]) for one in sets)
    return positive, negative


@pytest.mark.parametrize(
    ("site", "position"), [("resid_post", "last"), ("attn_out", "mean"), ("mlp_out", 1), ("resid_pre", -2)]
)
def test_a_vector_is_the_difference_of_the_sets_mean_activations(
    laboratory: Laboratory, site: str, position: str | int
) -> None:
    result = run(laboratory, site=site, position=position)
    vectors = array(result.vectors)
    assert vectors.shape == (3, 32)
    for place, layer in enumerate(result.layers):
        positive, negative = activations(laboratory, result, (site, layer.layer))
        expected = positive.mean(axis=0) - negative.mean(axis=0)
        assert vectors[place] == pytest.approx(expected, abs=1e-5)
        assert layer.norm == pytest.approx(np.linalg.norm(expected), rel=1e-5)
        norms = np.linalg.norm(np.concatenate([positive, negative]), axis=1)
        assert layer.mean_norm == pytest.approx(norms.mean(), rel=1e-5)
        unit = expected / np.linalg.norm(expected)
        assert array(result.positive.projections)[place] == pytest.approx(positive @ unit, abs=1e-5)
        assert array(result.negative.projections)[place] == pytest.approx(negative @ unit, abs=1e-5)


def test_separation_is_that_of_the_projections(laboratory: Laboratory) -> None:
    result = run(laboratory, layers=[2, 0])
    assert [layer.layer for layer in result.layers] == [2, 0]
    for place, layer in enumerate(result.layers):
        positive = array(result.positive.projections)[place].astype(float)
        negative = array(result.negative.projections)[place].astype(float)
        pairs = [(p > n) + (p == n) / 2 for p in positive for n in negative]
        assert layer.separation.auroc == pytest.approx(sum(pairs) / len(pairs))
        spread = math.sqrt((np.var(positive, ddof=1) + np.var(negative, ddof=1)) / 2)
        assert layer.separation.d_prime == pytest.approx((positive.mean() - negative.mean()) / spread, rel=1e-4)
        assert layer.separation.positive.mean == pytest.approx(positive.mean(), rel=1e-4)
        assert layer.separation.positive.standard_deviation == pytest.approx(np.std(positive, ddof=1), rel=1e-4)
        assert layer.held_out is None


def test_held_out_prompts_are_tried_on_a_direction_of_the_others_alone(laboratory: Laboratory) -> None:
    result = run(laboratory, layers=[1], held_out=HELD_OUT)
    positive, negative = activations(laboratory, result, ("resid_post", 1))
    kept = list(result.positive.held_out), list(result.negative.held_out)
    assert [len(one) for one in kept] == [2, 2]
    vector = np.delete(positive, kept[0], axis=0).mean(axis=0) - np.delete(negative, kept[1], axis=0).mean(axis=0)
    unit = vector / np.linalg.norm(vector)
    held_out = result.layers[0].held_out
    assert held_out is not None
    assert held_out.positive.mean == pytest.approx((positive[kept[0]] @ unit).mean(), rel=1e-4)
    assert held_out.negative.mean == pytest.approx((negative[kept[1]] @ unit).mean(), rel=1e-4)
    assert held_out.auroc == pytest.approx(np.mean((positive[kept[0]] @ unit)[:, None] > negative[kept[1]] @ unit))
    assert array(result.vectors)[0] == pytest.approx(positive.mean(axis=0) - negative.mean(axis=0), abs=1e-5)
    again = run(laboratory, layers=[1], held_out=HELD_OUT)
    assert (again.positive.held_out, again.provenance.seed) == (result.positive.held_out, HELD_OUT["seed"])


def test_a_normalised_vector_is_one_long_and_points_the_same_way(laboratory: Laboratory) -> None:
    plain, unit = run(laboratory), run(laboratory, normalize=True)
    vectors = array(plain.vectors)
    assert array(unit.vectors) == pytest.approx(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), abs=1e-6)
    assert unit.layers[0].norm == plain.layers[0].norm


def test_one_prompt_a_set_has_no_deviation(laboratory: Laboratory) -> None:
    separation = run(laboratory, positive=POSITIVE[:1], negative=NEGATIVE[:1], layers=[1]).layers[0].separation
    assert (separation.positive.standard_deviation, separation.d_prime, separation.auroc) == (None, None, 1.0)


def test_sets_with_one_mean_have_no_direction_between_them(laboratory: Laboratory) -> None:
    with pytest.raises(JobFailed, match="no direction between them"):
        run(laboratory, negative=POSITIVE)


def test_a_vector_steers_generation_as_it_came(laboratory: Laboratory) -> None:
    result = run(laboratory, layers=[1])
    vector = array(result.vectors)[0].tolist()
    steering = [{"type": "direction", "layer": 1, "values": vector}]
    body = {"kind": "generation", "model": "tiny-llama", "prompts": NEGATIVE[:1], "steering": steering}
    steered = laboratory.run(body | {"strengths": [0.0, 20.0], "max_new_tokens": 4})
    assert isinstance(steered, GenerationResult)
    unsteered, (zero, strong) = steered.prompts[0].unsteered, steered.prompts[0].steered
    assert zero.tokens == unsteered.tokens
    assert strong.unsteered_text != unsteered.unsteered


@pytest.mark.parametrize(
    ("body", "pointer", "code"),
    [
        ({"layers": [0, 3]}, "/layers/1", ErrorCode.UNKNOWN_LAYER),
        ({"layers": [1, 1]}, "/layers", ErrorCode.INVALID_REQUEST),
        ({"position": 2, "negative": ["Mary and John", ONE_TOKEN]}, "/negative/1", ErrorCode.UNKNOWN_POSITION),
        ({"position": "mean", "positive": [ONE_TOKEN]}, "/positive/0", ErrorCode.UNKNOWN_POSITION),
        ({"held_out": HELD_OUT, "negative": NEGATIVE[:1]}, "/negative", ErrorCode.INVALID_REQUEST),
    ],
)
def test_what_has_no_direction_is_refused_with_a_pointer(
    laboratory: Laboratory, body: dict[str, Any], pointer: str, code: ErrorCode
) -> None:
    with pytest.raises(InvalidSpec) as refused:
        run(laboratory, **body)
    assert {violation.pointer: violation.code for violation in refused.value.violations} == {pointer: code}
