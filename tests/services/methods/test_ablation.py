"""Ablations against plain float64 forward passes in which the same activations are replaced by hand."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from services.catalogue.resolve import Limits, resolve
from services.contracts.ablation import AblationResult
from services.contracts.errors import ErrorCode, InvalidSpec
from services.contracts.tensor import InlineTensor, Statistic
from tests.brute_force import Reference
from tests.families import HEADS, LAYERS
from tests.services.methods.conftest import FAMILIES, SPEC, Laboratory

PROMPT = "When John and Mary went to the shops, John gave the bag to"
ALIKE = (
    "When John and Mary went to the shops, Mary gave the bag to",
    "When Mary and John went to the shops, John gave the bag to",
    "When Mary and Mary went to the shops, Mary gave the bag to",
)
UNLIKE = ("The Eiffel Tower is in Paris", "John gave the bag to Mary and the drink")
EXAMPLE = {"prompt": PROMPT, "answer": " Mary", "foil": " John"}
SHORT = {"prompt": "The Eiffel Tower is in Paris and", "answer": " John", "foil": " is"}
TOLERANCE = 2e-5


def job(family: str, method: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "kind": "ablation",
        "model": f"tiny-{family.replace('_', '-')}",
        "method": method,
        "examples": [EXAMPLE],
        **changes,
    }


def run(laboratory: Laboratory, body: dict[str, Any]) -> AblationResult:
    result = laboratory.run(body)
    assert isinstance(result, AblationResult)
    return result


def array(estimate: Any, dims: tuple[str, ...]) -> Any:
    assert isinstance(estimate, InlineTensor)
    assert estimate.dims == dims
    return estimate.array()


class Bench:
    """The float64 reference of one model, and the metric of the main example."""

    def __init__(self, laboratory: Laboratory, body: dict[str, Any]) -> None:
        self.reference = Reference(laboratory.folder(body["model"]))
        self._tokenizer = laboratory.catalogue.tokenizer(body["model"])
        self._bos = laboratory.catalogue.model(body["model"]).prepends_bos
        self.tokens = self.read(PROMPT)
        self._mary, self._john = (self._tokenizer.read(text, bos=False).ids[0] for text in (" Mary", " John"))
        self.baseline = self.metric(self.reference.logits(self.tokens))
        self.width = self.reference.d_head

    def read(self, text: str) -> tuple[int, ...]:
        return self._tokenizer.read(text, bos=self._bos).ids

    def metric(self, logits: Tensor) -> float:
        return float(logits[-1, self._mary] - logits[-1, self._john])

    def effect(self, site: str, layer: int, value: Tensor, *, head: int | None, position: int | None) -> float:
        """Of setting a site to `value` [position, d] at one position or all, in one head's columns or all."""
        rows = slice(None) if position is None else slice(position, position + 1)
        columns = slice(None) if head is None else slice(head * self.width, (head + 1) * self.width)

        def change(activation: Tensor) -> Tensor:
            changed = activation.clone()
            changed[rows, columns] = value.expand_as(activation)[rows, columns]
            return changed

        return self.metric(self.reference.logits(self.tokens, {(site, layer): change})) - self.baseline

    def heads(self, value: Callable[[int], Tensor]) -> list[list[float]]:
        return [
            [self.effect("z", layer, value(layer), head=head, position=None) for head in range(HEADS)]
            for layer in range(LAYERS)
        ]

    def places(self, site: str, value: Callable[[int], Tensor]) -> list[list[float]]:
        return [
            [self.effect(site, layer, value(layer), head=None, position=at) for at in range(len(self.tokens))]
            for layer in range(LAYERS)
        ]

    def activations(self, text: str, site: str, layer: int) -> Tensor:
        return self.reference.activations(self.read(text), [(site, layer)])[site, layer]


@pytest.mark.parametrize("family", FAMILIES)
def test_zero_ablation_equals_a_plain_forward_pass_without_the_part(laboratory: Laboratory, family: str) -> None:
    heads = run(laboratory, job(family, {"type": "zero_ablation", "site": "z"}))
    mlps = run(laboratory, job(family, {"type": "zero_ablation", "site": "mlp_out"}))
    bench = Bench(laboratory, job(family, {}))
    zero = torch.zeros(1, 1, dtype=torch.float64)
    expected = bench.heads(lambda _: zero)
    assert np.abs(expected).max() > 200 * TOLERANCE, "the reference itself must see an effect"
    np.testing.assert_allclose(array(heads.effects, ("layer", "head")), expected, atol=TOLERANCE)
    by_position = bench.places("mlp_out", lambda _: zero)
    np.testing.assert_allclose(array(mlps.effects, ("layer", "position")), by_position, atol=TOLERANCE)
    assert heads.examples[0].baseline == pytest.approx(bench.baseline, abs=1e-4)
    assert (heads.over, heads.seed) == (None, None)


@pytest.mark.parametrize("family", FAMILIES)
def test_mean_ablation_averages_aligned_references_position_by_position(laboratory: Laboratory, family: str) -> None:
    method = {"type": "mean_ablation", "references": list(ALIKE)}
    heads = run(laboratory, job(family, method | {"site": "z"}))
    residuals = run(laboratory, job(family, method | {"site": "resid_pre"}))
    assert (heads.over, residuals.over) == ("position", "position")
    bench = Bench(laboratory, job(family, {}))

    def mean(site: str) -> Callable[[int], Tensor]:
        return lambda layer: torch.stack([bench.activations(text, site, layer) for text in ALIKE]).mean(0)

    np.testing.assert_allclose(array(heads.effects, ("layer", "head")), bench.heads(mean("z")), atol=TOLERANCE)
    expected = bench.places("resid_pre", mean("resid_pre"))
    np.testing.assert_allclose(array(residuals.effects, ("layer", "position")), expected, atol=TOLERANCE)


@pytest.mark.parametrize("references", [UNLIKE, ALIKE], ids=["as nothing is aligned", "as asked"])
def test_mean_ablation_averages_over_all_positions_of_all_references(
    laboratory: Laboratory, references: Sequence[str]
) -> None:
    over = {} if references is UNLIKE else {"over": "all"}
    method = {"type": "mean_ablation", "references": list(references), **over}
    result = run(laboratory, job("llama", method | {"site": "z"}))
    assert result.over == "all"
    bench = Bench(laboratory, job("llama", {}))

    def mean(layer: int) -> Tensor:
        return torch.cat([bench.activations(text, "z", layer) for text in references]).mean(0, keepdim=True)

    np.testing.assert_allclose(array(result.effects, ("layer", "head")), bench.heads(mean), atol=TOLERANCE)


def test_resampling_as_often_as_there_are_references_is_the_mean_over_them(laboratory: Laboratory) -> None:
    method = {"type": "resample_ablation", "references": list(ALIKE), "samples": 3, "seed": 5}
    heads = run(laboratory, job("llama", method | {"site": "z"}))
    residuals = run(laboratory, job("llama", method | {"site": "resid_pre"}))
    assert heads.seed == 5
    bench = Bench(laboratory, job("llama", {}))

    def of(text: str, site: str) -> Callable[[int], Tensor]:
        return lambda layer: bench.activations(text, site, layer)

    expected = np.mean([bench.heads(of(text, "z")) for text in ALIKE], axis=0)
    np.testing.assert_allclose(array(heads.effects, ("layer", "head")), expected, atol=TOLERANCE)
    by_position = np.mean([bench.places("resid_pre", of(text, "resid_pre")) for text in ALIKE], axis=0)
    np.testing.assert_allclose(array(residuals.effects, ("layer", "position")), by_position, atol=TOLERANCE)


def test_a_reference_of_another_length_gives_activations_at_drawn_positions(laboratory: Laboratory) -> None:
    """One that has a single token gives that one's everywhere; a longer one gives one of its own."""
    method = {"type": "resample_ablation", "site": "mlp_out", "layers": [1]}
    bench = Bench(laboratory, job("gpt2", {}))
    single = run(laboratory, job("gpt2", method | {"references": ["The"], "at_once": True}))
    everywhere = bench.effect("mlp_out", 1, bench.activations("The", "mlp_out", 1), head=None, position=None)
    np.testing.assert_allclose(array(single.effects, ("layer",)), [everywhere], atol=TOLERANCE)
    longer = run(laboratory, job("gpt2", method | {"references": [UNLIKE[0]], "positions": [-1], "seed": 1}))
    taken = bench.activations(UNLIKE[0], "mlp_out", 1)
    last = len(bench.tokens) - 1
    possible = [bench.effect("mlp_out", 1, one[None], head=None, position=last) for one in taken]
    (found,) = array(longer.effects, ("layer", "position"))
    assert min(abs(found[0] - effect) for effect in possible) < TOLERANCE


def test_the_seed_decides_the_draws(laboratory: Laboratory) -> None:
    method = {"type": "resample_ablation", "site": "z", "references": [*ALIKE, *UNLIKE], "samples": 2}
    one, again, other = (
        array(run(laboratory, job("llama", method | {"seed": seed})).effects, ("layer", "head")) for seed in (3, 3, 4)
    )
    np.testing.assert_allclose(one, again, atol=1e-6)
    assert np.abs(one - other).max() > 1e-3


def test_positions_can_be_ablated_at_once(laboratory: Laboratory) -> None:
    zero = torch.zeros(1, 1, dtype=torch.float64)
    bench = Bench(laboratory, job("llama", {}))
    method = {"type": "zero_ablation", "site": "mlp_out", "at_once": True}
    everywhere = run(laboratory, job("llama", method))
    expected = [bench.effect("mlp_out", layer, zero, head=None, position=None) for layer in range(LAYERS)]
    np.testing.assert_allclose(array(everywhere.effects, ("layer",)), expected, atol=TOLERANCE)
    last = len(bench.tokens) - 1
    single = run(laboratory, job("llama", method | {"positions": [-1]}))
    expected = [bench.effect("mlp_out", layer, zero, head=None, position=last) for layer in range(LAYERS)]
    np.testing.assert_allclose(array(single.effects, ("layer",)), expected, atol=TOLERANCE)
    assert single.positions is None


def test_ablating_the_pattern_is_ablating_what_the_head_reads(laboratory: Laboratory) -> None:
    pattern, z = (run(laboratory, job("gpt2", {"type": "zero_ablation", "site": site})) for site in ("pattern", "z"))
    dims = ("layer", "head")
    np.testing.assert_allclose(array(pattern.effects, dims), array(z.effects, dims), atol=TOLERANCE)


@pytest.mark.parametrize("method", ["zero_ablation", "mean_ablation", "resample_ablation"])
def test_many_examples_give_means_with_standard_errors(laboratory: Laboratory, method: str) -> None:
    references = {} if method == "zero_ablation" else {"references": [*ALIKE, *UNLIKE]}
    body = job("gpt_neox", {"type": method, "site": "z", **references})
    body |= {"examples": [EXAMPLE, SHORT, EXAMPLE | {"prompt": ALIKE[0]}], "per_example": True}
    result = run(laboratory, body)
    own = np.stack([array(example.effects, ("layer", "head")) for example in result.examples])
    assert isinstance(result.effects, Statistic)
    assert result.effects.count == 3
    np.testing.assert_allclose(array(result.effects.mean, ("layer", "head")), own.mean(0), atol=1e-6)
    np.testing.assert_allclose(
        array(result.effects.standard_error, ("layer", "head")), own.std(0, ddof=1) / 3**0.5, atol=1e-6
    )
    alone = run(laboratory, body | {"examples": [EXAMPLE]})
    if method != "resample_ablation":
        np.testing.assert_allclose(own[0], array(alone.effects, ("layer", "head")), atol=TOLERANCE)


REFERENCES = {"references": list(ALIKE)}


@pytest.mark.parametrize(
    ("method", "pointer", "code", "message"),
    [
        ({"type": "zero_ablation", "site": "attn_scores"}, "/site", ErrorCode.UNKNOWN_SITE, "ablate the pattern"),
        ({"type": "mean_ablation", "site": "pattern", **REFERENCES}, "/site", ErrorCode.UNKNOWN_SITE, "ablate z"),
        (
            {"type": "resample_ablation", "site": "attn_scores", **REFERENCES},
            "/site",
            ErrorCode.UNKNOWN_SITE,
            "z, or q",
        ),
        ({"type": "zero_ablation", "site": "z", "layers": [3]}, "/layers/0", ErrorCode.UNKNOWN_LAYER, "layers 0..2"),
        ({"type": "zero_ablation", "site": "k", "heads": [0, 2]}, "/heads/1", ErrorCode.UNKNOWN_HEAD, "heads 0..1"),
        ({"type": "zero_ablation", "site": "mlp_out"}, "/positions", ErrorCode.UNEQUAL_LENGTHS, "`at_once`"),
        (
            {"type": "zero_ablation", "site": "mlp_out", "positions": [-1, 12]},
            "/positions/1",
            ErrorCode.UNKNOWN_POSITION,
            "position 12 does not exist",
        ),
        (
            {"type": "mean_ablation", "site": "z", "over": "position", "references": [UNLIKE[0]]},
            "/references/0",
            ErrorCode.UNEQUAL_LENGTHS,
            "average over all positions",
        ),
    ],
)
def test_what_cannot_be_ablated_is_refused_with_the_alternative(
    laboratory: Laboratory, method: dict[str, Any], pointer: str, code: ErrorCode, message: str
) -> None:
    body = job("llama", method, examples=[EXAMPLE, SHORT])
    with pytest.raises(InvalidSpec) as error:
        resolve(SPEC.validate_json(json.dumps(body)), laboratory.catalogue, Limits())
    violation = error.value.violations[0]
    assert violation.pointer == f"/method{pointer}"
    assert violation.code is code
    assert message in violation.message
