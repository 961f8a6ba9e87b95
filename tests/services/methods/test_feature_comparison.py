"""Contrast of prompt sets and search by marked tokens, against brute force on a plain float64 model's activations."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu  # type: ignore[import-untyped]

from services.catalogue.catalogue import Catalogue
from services.catalogue.resolve import Limits, resolve
from services.contracts.errors import ErrorCode, InvalidSpec, JobFailed
from services.contracts.feature_contrast import FeatureContrast
from services.contracts.feature_search import FeatureSearch
from services.contracts.features import FeaturesResult, PromptFeatures
from services.engine.engine import Engine
from services.saes.sae import Relu, Sae
from tests.brute_force import Reference
from tests.services.methods.conftest import SPEC, Laboratory
from tests.services.methods.saes import in_use
from tests.services.methods.test_features import FEATURES, LAYER, expected, run, sae

__all__ = ["sae"]

PEOPLE = [
    "When John and Mary went to the shops",
    "John gave the bag to Mary",
    "Mary and John gave the bag",
    "the shops to Mary",
]
PLACES = ["The Eiffel Tower is in Paris", "Paris is in the", "The bag is in the shops"]
WITH_TOKEN = ["in Mary", "to Mary", "the Mary"]
WITHOUT = ["in John", "to John", "the bag"]
FIRST = 5


def limited(laboratory: Laboratory, engine: Engine, sae: Sae) -> tuple[Sae, list[PromptFeatures]]:
    """The SAE with a threshold over which some of these tokens are, none near it, and the prompts as read."""
    read = list(run(laboratory, engine, sae, prompts=[*PEOPLE, *PLACES]).prompts)
    norms = torch.cat([expected(laboratory, sae, prompt).x.norm(dim=1) for prompt in read])
    upper = norms.sort().values[len(norms) * 3 // 4 :]
    widest = int(upper.diff().argmax())
    return Sae(**{**vars(sae), "norm_threshold": float(upper[widest : widest + 2].mean())}), read


def contrast_of(result: FeaturesResult) -> FeatureContrast:
    assert result.contrast is not None
    assert result.prompts == ()
    return result.contrast


def search_of(result: FeaturesResult) -> FeatureSearch:
    assert result.search is not None
    assert result.prompts == ()
    return result.search


@pytest.mark.parametrize("score", ["max", "mean"])
def test_a_contrast_is_the_brute_force_one(laboratory: Laboratory, engine: Engine, sae: Sae, score: str) -> None:
    used, read = limited(laboratory, engine, sae)
    result = run(laboratory, engine, used, prompts=PEOPLE, contrast={"baseline": PLACES, "score": score}, top_k=100)
    found = contrast_of(result)
    wanted = [expected(laboratory, used, prompt) for prompt in read]
    within = [want.features[want.counted] for want in wanted]
    scores = np.stack([(rows.amax(dim=0) if score == "max" else rows.mean(dim=0)).numpy() for rows in within])
    first, second = scores[: len(PEOPLE)], scores[len(PEOPLE) :]
    assert (found.prompts, found.baseline_prompts) == (len(PEOPLE), len(PLACES))
    assert {feature.index for feature in found.features} == set(np.flatnonzero((scores > 0).any(axis=0)).tolist())
    assert found.tested == len(found.features) < FEATURES
    for feature in found.features:
        ours, theirs = first[:, feature.index], second[:, feature.index]
        test = mannwhitneyu(ours.round(4), theirs.round(4), method="asymptotic")
        pooled = np.sqrt((3 * ours.var(ddof=1) + 2 * theirs.var(ddof=1)) / 5)
        assert feature.mean == pytest.approx(ours.mean(), abs=1e-4)
        assert feature.baseline_mean == pytest.approx(theirs.mean(), abs=1e-4)
        assert (feature.firing, feature.baseline_firing) == ((ours > 0).mean(), (theirs > 0).mean())
        assert feature.auroc == pytest.approx(test.statistic / 12)
        assert np.isnan(test.pvalue) or feature.p_value == pytest.approx(test.pvalue)
        if feature.hedges_g is not None:
            assert feature.hedges_g == pytest.approx((1 - 3 / 19) * (ours.mean() - theirs.mean()) / pooled, rel=1e-2)
    assert [feature.p_value for feature in found.features] == sorted(feature.p_value for feature in found.features)
    assert all(feature.q_value >= feature.p_value for feature in found.features)
    assert {effect.index for effect in result.effects} == {feature.index for feature in found.features}
    assert any("fewer than 8 prompts" in warning for warning in result.warnings)


def test_the_first_set_as_its_own_baseline_tells_nothing_apart(
    laboratory: Laboratory, engine: Engine, sae: Sae
) -> None:
    found = contrast_of(run(laboratory, engine, sae, prompts=PEOPLE, contrast={"baseline": PEOPLE}, top_k=100))
    assert {feature.auroc for feature in found.features} == {0.5}
    assert {feature.q_value for feature in found.features} == {1.0}


def test_a_search_is_the_brute_force_one(laboratory: Laboratory, engine: Engine, sae: Sae) -> None:
    used, read = limited(laboratory, engine, sae)
    marks = [{"text": " Mary"}, {"prompt": 0, "positions": [-1, 2]}]
    result = run(laboratory, engine, used, prompts=[*PEOPLE, *PLACES], search=marks, top_k=100)
    found = search_of(result)
    wanted = [expected(laboratory, used, prompt) for prompt in read]
    is_marked = [
        torch.tensor(
            [
                string == " Mary" or (index == 0 and at in (2, len(prompt.tokens.ids) - 1))
                for at, string in enumerate(prompt.tokens.strings)
            ]
        )
        for index, prompt in enumerate(read)
    ]
    marked = torch.cat([mask[want.counted] for mask, want in zip(is_marked, wanted, strict=True)]).numpy()
    values = torch.cat([want.features[want.counted] for want in wanted]).numpy()
    assert (found.marked, found.others) == (marked.sum(), (~marked).sum())
    assert {(each.prompt, at) for each in found.tokens for at in each.positions} == {
        (index, at)
        for index, (mask, want) in enumerate(zip(is_marked, wanted, strict=True))
        for at in (mask & want.counted).nonzero().flatten().tolist()
    }
    candidates = np.flatnonzero((values[marked] > 0).any(axis=0))
    assert found.candidates == len(candidates)
    assert {feature.index for feature in found.features} == set(candidates.tolist())
    for feature in found.features:
        fires, column = values[:, feature.index] > 0, values[:, feature.index]
        hits = (fires & marked).sum()
        assert feature.precision == pytest.approx(hits / fires.sum())
        assert feature.recall == pytest.approx(hits / marked.sum())
        assert feature.f1 == pytest.approx(2 / (1 / feature.precision + 1 / feature.recall))
        assert feature.mean_marked == pytest.approx(column[marked].mean(), abs=1e-4)
        assert feature.mean_other == pytest.approx(column[~marked].mean(), abs=1e-4)
        pairs = column[marked].round(4)[:, None], column[~marked].round(4)[None]
        assert feature.auroc == pytest.approx(((pairs[0] > pairs[1]) + 0.5 * (pairs[0] == pairs[1])).mean(), abs=1e-9)
    assert [feature.f1 for feature in found.features] == sorted((each.f1 for each in found.features), reverse=True)


def fires_on_one_token(laboratory: Laboratory, engine: Engine, sae: Sae) -> Sae:
    """Random features, and one (`FIRST`) whose pre-activation is a half on " Mary" and minus a half elsewhere."""
    read = run(laboratory, engine, sae, prompts=[*WITH_TOKEN, *WITHOUT]).prompts
    place = ("resid_post", LAYER)
    model = Reference(laboratory.folder("tiny-llama"))
    x = torch.cat([model.activations(prompt.tokens.ids, [place])[place] for prompt in read])
    target = torch.tensor([float(string == " Mary") for prompt in read for string in prompt.tokens.strings])
    assert 0 < target.sum() < len(target)
    direction = torch.linalg.lstsq(x, target.double()[:, None], driver="gelsd").solution[:, 0]
    W_enc, b_enc = sae.W_enc.clone(), sae.b_enc.clone()
    W_enc[:, FIRST], b_enc[FIRST] = direction.float(), -0.5
    changes = {"W_enc": W_enc, "b_enc": b_enc, "activation": Relu(), "apply_b_dec_to_input": False}
    return Sae(**{**vars(sae), **changes})


def test_a_feature_that_fires_on_one_token_only_is_found_first_by_both(
    laboratory: Laboratory, engine: Engine, sae: Sae
) -> None:
    made = fires_on_one_token(laboratory, engine, sae)
    contrast = contrast_of(run(laboratory, engine, made, prompts=WITH_TOKEN, contrast={"baseline": WITHOUT}))
    best = contrast.features[0]
    assert (best.index, best.auroc, best.firing, best.baseline_firing) == (FIRST, 1.0, 1.0, 0.0)
    search = search_of(run(laboratory, engine, made, prompts=[*WITH_TOKEN, *WITHOUT], search=[{"text": "Mary"}]))
    found = search.features[0]
    assert (found.index, found.precision, found.recall, found.f1, found.auroc) == (FIRST, 1.0, 1.0, 1.0, 1.0)
    assert found.mean_other == 0.0


def test_given_features_are_the_only_ones_tested_and_searched(laboratory: Laboratory, engine: Engine, sae: Sae) -> None:
    every = contrast_of(run(laboratory, engine, sae, prompts=PEOPLE, contrast={"baseline": PLACES}, top_k=100))
    chosen = [every.features[3].index, every.features[0].index]
    some = contrast_of(run(laboratory, engine, sae, prompts=PEOPLE, contrast={"baseline": PLACES}, features=chosen))
    assert some.tested == 2
    assert [(each.index, each.p_value) for each in some.features] == [
        (every.features[place].index, every.features[place].p_value) for place in (0, 3)
    ]
    found = search_of(
        run(laboratory, engine, sae, search=[{"positions": [1]}], features=list(range(FEATURES)), top_k=5)
    )
    assert found == search_of(run(laboratory, engine, sae, search=[{"positions": [1]}], top_k=5))


def test_a_set_without_a_token_within_the_threshold_fails_with_a_reason(
    laboratory: Laboratory, engine: Engine, sae: Sae
) -> None:
    nothing = Sae(**{**vars(sae), "norm_threshold": 1e-6})
    with pytest.raises(JobFailed, match="over the SAE's norm threshold"):
        run(laboratory, engine, nothing, contrast={"baseline": PLACES})
    with pytest.raises(JobFailed, match="none is marked"):
        run(laboratory, engine, nothing, search=[{"positions": [1]}])


def body(**changes: Any) -> dict[str, Any]:
    return {"kind": "features", "model": "tiny-llama", "sae": "sae", "prompts": PLACES, **changes}


@pytest.mark.parametrize("changes", [{}, {"contrast": {"baseline": PEOPLE}}, {"search": [{"text": " is"}]}])
def test_the_estimate_is_what_is_billed(
    laboratory: Laboratory, engine: Engine, sae: Sae, changes: dict[str, Any]
) -> None:
    used = in_use(sae, layer=LAYER)
    served = Catalogue(laboratory.catalogue.home, laboratory.catalogue.models, {"sae": used.facts})
    estimate = resolve(SPEC.validate_json(json.dumps(body(**changes))), served, Limits()).cost
    result = run(laboratory, engine, sae, prompts=PLACES, **changes)
    assert result.usage.token_layers / estimate.token_layers == pytest.approx(1.0, abs=0.02)
    assert len(result.model_dump_json()) < 4 * estimate.output_bytes


@pytest.mark.parametrize(
    ("changes", "refusal", "message"),
    [
        ({"search": [{"text": " is"}, {}]}, ("/search/1", ErrorCode.INVALID_REQUEST), "nothing is marked"),
        ({"search": [{"text": " is", "positions": [0]}]}, ("/search/0/text", ErrorCode.INVALID_REQUEST), "two ways"),
        ({"search": [{"prompt": 3, "text": "a"}]}, ("/search/0/prompt", ErrorCode.INVALID_REQUEST), "0..2"),
        ({"search": [{"positions": [0, 99]}]}, ("/search/0/positions/1", ErrorCode.UNKNOWN_POSITION), "position 99"),
        (
            {"search": [{"text": "Rome"}]},
            ("/search/0/text", ErrorCode.UNKNOWN_POSITION),
            "'Rome' does not occur in any",
        ),
        ({"search": [{"prompt": 2, "text": "Eiffel"}]}, ("/search/0/text", ErrorCode.UNKNOWN_POSITION), "in prompt 2"),
        ({"prompts": ["a"], "bos": False, "search": [{"text": "a"}]}, ("/search", ErrorCode.INVALID_REQUEST), "every"),
        (
            {"search": [{"text": "a"}], "contrast": {"baseline": ["b"]}},
            ("/search", ErrorCode.INVALID_REQUEST),
            "two jobs",
        ),
        (
            {"search": [{"text": "a"}], "reconstruction": True},
            ("/reconstruction", ErrorCode.INVALID_REQUEST),
            "leave it",
        ),
        ({"contrast": {"baseline": ["b"] * 998}}, ("/contrast/baseline", ErrorCode.JOB_TOO_LARGE), "1001 prompts"),
        (
            {"contrast": {"baseline": ["b", {"type": "tokens", "tokens": [9_999_999]}]}},
            ("/contrast/baseline/1", ErrorCode.UNKNOWN_TOKEN),
            "9999999",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_where_it_stands(
    laboratory: Laboratory, sae: Sae, changes: dict[str, Any], refusal: tuple[str, ErrorCode], message: str
) -> None:
    used = in_use(sae, layer=LAYER)
    served = Catalogue(laboratory.catalogue.home, laboratory.catalogue.models, {"sae": used.facts})
    with pytest.raises(InvalidSpec) as refused:
        resolve(SPEC.validate_json(json.dumps(body(**changes))), served, Limits())
    (violation,) = refused.value.violations
    assert (violation.pointer, violation.code) == refusal
    assert message in violation.message


def test_a_contrast_of_more_scores_than_can_be_held_is_refused(laboratory: Laboratory, sae: Sae) -> None:
    wide = in_use(sae, layer=LAYER).facts.model_copy(update={"features": 2**24 + 1})
    served = Catalogue(laboratory.catalogue.home, laboratory.catalogue.models, {"sae": wide})
    asked = body(prompts=["John"], contrast={"baseline": ["Mary"]})
    with pytest.raises(InvalidSpec) as refused:
        resolve(SPEC.validate_json(json.dumps(asked)), served, Limits())
    (violation,) = refused.value.violations
    assert (violation.pointer, violation.code) == ("/prompts", ErrorCode.JOB_TOO_LARGE)
    assert "name `features`" in violation.message
    resolve(SPEC.validate_json(json.dumps(asked | {"features": [5]})), served, Limits())
