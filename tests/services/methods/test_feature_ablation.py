"""Feature ablation against plain float64 forward and backward passes on a tiny model with a random SAE."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from services.catalogue.resolve import Limits, resolve
from services.contracts.errors import ErrorCode, InvalidSpec, JobFailed
from services.contracts.feature_ablation import FeatureAblationResult
from services.contracts.tensor import Statistic
from services.engine.engine import Engine
from services.methods.context import SaeInUse
from tests.services.methods.attribution_patching import array
from tests.services.methods.conftest import SPEC, Laboratory
from tests.services.methods.feature_reference import EXAMPLE, FEATURES, Plain, made, served
from tests.services.methods.test_ablation import ALIKE, SHORT, UNLIKE
from tests.services.methods.test_feature_patching import of_site

MEAN = {"source": "mean", "references": [*ALIKE]}
KL = {"metric": {"type": "kl_divergence"}}


def body(*examples: dict[str, Any], metric: Any = None, **method: Any) -> dict[str, Any]:
    asked = {"type": "feature_ablation", "sae": "sae", "top_k": FEATURES, **method}
    rest = {} if metric is None else {"metric": metric}
    return {"kind": "ablation", "model": "tiny-llama", "method": asked, "examples": [*examples] or [EXAMPLE], **rest}


def run(laboratory: Laboratory, engine: Engine, used: SaeInUse, asked: dict[str, Any]) -> FeatureAblationResult:
    result = Laboratory(engine, served(laboratory, used.facts)).run(asked, used)
    assert isinstance(result, FeatureAblationResult)
    return result


class Ablated(Plain):
    """The change from an example's features to zero, or to these means over references."""

    def __init__(self, laboratory: Laboratory, used: SaeInUse, result: FeatureAblationResult, means: Any = 0.0) -> None:
        super().__init__(laboratory, used, result.examples[0].tokens.ids, None)
        self.kept = self.x.norm(dim=1) <= (used.sae.norm_threshold or torch.inf)
        self.changed = (means - self.f) * self.kept[:, None]

    def references(self, laboratory: Laboratory, prompts: Any) -> list[Any]:
        """Every reference's features [position, d_sae]; NaN where it is over the threshold."""
        read = laboratory.catalogue.tokenizer("tiny-llama").read
        activations = [self.at_site(read(prompt, bos=True).ids) for prompt in prompts]
        limit = self.sae.norm_threshold or torch.inf
        return [torch.where((x.norm(dim=1) <= limit)[:, None], self.features(x), torch.nan) for x in activations]


@pytest.mark.parametrize(("site", "layer"), [("resid_post", 1), ("mlp_out", 0), ("attn_out", 1), ("z", 1)])
def test_ablating_a_feature_to_zero_removes_its_direction_times_its_activation(
    laboratory: Laboratory, engine: Engine, site: str, layer: int
) -> None:
    used = of_site(site, layer)
    result = run(laboratory, engine, used, body())
    plain = Ablated(laboratory, used, result)
    effects = array(result.effects)
    for place, feature in list(enumerate(result.features))[:8]:
        removed = -plain.f[:, feature.index, None] * used.sae.W_dec[feature.index].double()
        assert effects[place] == pytest.approx(plain.effect(removed), abs=1e-4)
    every = -plain.f @ used.sae.W_dec.double()
    assert float(array(result.together.effects)) == pytest.approx(plain.effect(every), abs=1e-4)
    want = (plain.changed * (plain.gradient() @ used.sae.W_dec.double().T)).sum(0)
    indices = [feature.index for feature in result.features]
    np.testing.assert_allclose(array(result.estimated), want[indices], atol=1e-4 * float(want.abs().max()))
    assert float(array(result.together.estimated)) == pytest.approx(float(want.sum()), abs=1e-3)


@pytest.mark.parametrize("site", ["resid_post", "z"])
@pytest.mark.parametrize(
    ("references", "over"), [(ALIKE, None), (ALIKE, "all"), ((*ALIKE, *UNLIKE), None)], ids=["alike", "all", "unlike"]
)
def test_a_mean_is_taken_as_mean_ablation_takes_it(
    laboratory: Laboratory, engine: Engine, site: str, references: Any, over: str | None
) -> None:
    used, used_over = of_site(site, 1), "position" if (references, over) == (ALIKE, None) else "all"
    result = run(laboratory, engine, used, body(source="mean", references=[*references], over=over, top_k=8))
    assert result.over == used_over
    every = Ablated(laboratory, used, result).references(laboratory, references)
    means = torch.stack(every).mean(0) if used_over == "position" else torch.cat(every).mean(0)
    plain = Ablated(laboratory, used, result, means)
    for place, feature in enumerate(result.features):
        want = plain.effect(plain.of_feature(feature.index))
        assert array(result.effects)[place] == pytest.approx(want, abs=1e-4)
    assert float(array(result.together.effects)) == pytest.approx(
        plain.effect(plain.changed @ used.sae.W_dec.double()), abs=1e-4
    )


def test_by_position_a_cell_changes_that_position_alone(laboratory: Laboratory, engine: Engine) -> None:
    used = made()
    result = run(laboratory, engine, used, body(by_position=True, positions=[-1, 3, 5], top_k=5))
    plain = Ablated(laboratory, used, result)
    assert result.positions == (-1, 3, 5)
    for place, feature in enumerate(result.features):
        for column, position in enumerate(result.positions):
            added = torch.zeros_like(plain.x)
            added[position] = plain.of_feature(feature.index)[position]
            assert array(result.effects)[place, column] == pytest.approx(plain.effect(added), abs=1e-4)


@pytest.mark.parametrize("over", ["position", "all"])
def test_tokens_over_the_norm_threshold_are_left_untouched_and_count_in_no_mean(
    laboratory: Laboratory, engine: Engine, over: str
) -> None:
    whole = Ablated(laboratory, made(), run(laboratory, engine, made(), body()))
    used = made(norm_threshold=float(whole.x.norm(dim=1).median()))
    result = run(laboratory, engine, used, body(**MEAN, over=over))
    stacked = torch.stack(Ablated(laboratory, used, result).references(laboratory, ALIKE))
    means = stacked.nanmean(0) if over == "position" else stacked.flatten(0, 1).nanmean(0)
    unknown = means.isnan().any(-1)
    plain = Ablated(laboratory, used, result, means.nan_to_num())
    plain.changed = plain.changed * ~unknown[..., None]
    want = tuple((~plain.kept | unknown).nonzero().flatten().tolist())
    assert result.examples[0].left_out == want
    assert 0 < len(want) < len(plain.base)
    assert float(array(result.together.effects)) == pytest.approx(
        plain.effect(plain.changed @ used.sae.W_dec.double()), abs=1e-4
    )
    left_out = "over the SAE's norm threshold, here or in all references: left untouched"
    assert any(warning.endswith(left_out) for warning in result.warnings)


def test_references_that_are_all_over_the_norm_threshold_fail_the_job(laboratory: Laboratory, engine: Engine) -> None:
    used = made(norm_threshold=1e-6)
    with pytest.raises(JobFailed, match="every token of the references is over"):
        run(laboratory, engine, used, body(**MEAN))


def test_many_examples_are_a_statistic_of_each_ones_own(laboratory: Laboratory, engine: Engine) -> None:
    used = made()
    one = run(laboratory, engine, used, body(features=[1, 2, 3], top_k=0))
    result = run(laboratory, engine, used, body(EXAMPLE, SHORT, features=[1, 2, 3], top_k=0) | {"per_example": True})
    own = np.stack([array(example.effects) for example in result.examples])
    np.testing.assert_allclose(own[0], array(one.effects), atol=1e-5)
    assert isinstance(result.effects, Statistic)
    np.testing.assert_allclose(array(result.effects.mean), own.mean(0), atol=1e-6)


def test_a_divergence_has_exact_effects_and_no_estimates(laboratory: Laboratory, engine: Engine) -> None:
    used = made()
    result = run(laboratory, engine, used, body(features=[1, 2, 3], top_k=0, **KL))
    plain = Ablated(laboratory, used, result)
    clean = plain.reference.logits(plain.base)[-1].log_softmax(-1)

    def divergence(index: int) -> float:
        changed = plain.reference.logits(plain.base, {plain.place: lambda x: x + plain.of_feature(index)})[-1]
        return float((clean.exp() * (clean - changed.log_softmax(-1))).sum())

    np.testing.assert_allclose(array(result.effects), [divergence(index) for index in (1, 2, 3)], atol=1e-5)
    assert (result.estimated, result.together.estimated, result.check) == (None, None, None)


@pytest.mark.parametrize(
    "asked",
    [
        body(),
        body(EXAMPLE, SHORT, features=[1, 2], positions=[-3, -1]),
        body(by_position=True, top_k=4),
        body(**MEAN),
        body(EXAMPLE, SHORT, source="mean", references=[*ALIKE, *UNLIKE], metric={"type": "cross_entropy"}),
        body(features=[1, 2], top_k=None, metric={"type": "kl_divergence"}),
    ],
)
@pytest.mark.parametrize("layer", [1, 2])
def test_a_job_is_billed_what_was_estimated(
    laboratory: Laboratory, engine: Engine, layer: int, asked: dict[str, Any]
) -> None:
    """With an SAE whose features all fire, so that what is run is known beforehand."""
    used = made(layer=layer, sparse=False)
    catalogue = served(laboratory, used.facts)
    estimate = resolve(SPEC.validate_json(json.dumps(asked)), catalogue, Limits()).cost.token_layers
    billed = Laboratory(engine, catalogue).run(asked, used).usage.token_layers
    assert billed / estimate == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(
    ("facts", "method", "pointer", "code"),
    [
        ({"model": "tiny-gpt2"}, {}, "/method/sae", ErrorCode.SAE_MISMATCH),
        ({"normalize_activations": "constant_norm_rescale"}, {}, "/method/sae", ErrorCode.SAE_MISMATCH),
        ({}, {"sae": "none"}, "/method/sae", ErrorCode.UNKNOWN_SAE),
        ({}, {"features": [FEATURES]}, "/method/features/0", ErrorCode.UNKNOWN_FEATURE),
        ({}, {"top_k": 0}, "/method/features", ErrorCode.INVALID_REQUEST),
        ({}, {"source": "mean"}, "/method/references", ErrorCode.INVALID_REQUEST),
        ({}, {"references": [*ALIKE]}, "/method/references", ErrorCode.INVALID_REQUEST),
        ({}, {"over": "all"}, "/method/over", ErrorCode.INVALID_REQUEST),
        (
            {},
            {"source": "mean", "references": [UNLIKE[0]], "over": "position"},
            "/method/references/0",
            ErrorCode.UNEQUAL_LENGTHS,
        ),
        ({}, {"positions": [99]}, "/method/positions/0", ErrorCode.UNKNOWN_POSITION),
        ({}, KL, "/metric/type", ErrorCode.UNSUPPORTED_METRIC),
    ],
)
def test_what_cannot_run_is_refused_with_a_pointer(
    laboratory: Laboratory, facts: dict[str, Any], method: dict[str, Any], pointer: str, code: ErrorCode
) -> None:
    catalogue = served(laboratory, made().facts.model_copy(update=facts))
    with pytest.raises(InvalidSpec) as refusal:
        resolve(SPEC.validate_json(json.dumps(body(**method))), catalogue, Limits())
    (violation,) = refusal.value.violations
    assert violation.pointer == pointer
    assert violation.code == code
