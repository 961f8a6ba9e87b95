"""Direct logit terms of an SAE's features against the same products written out on plain modules in float64."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from services.catalogue.resolve import Limits, resolve
from services.contracts.attribution import AttributionResult
from services.contracts.direct_logit_attribution import DirectLogitOutcome
from services.contracts.direct_logit_features import FeatureSplit
from services.contracts.errors import ErrorCode, InvalidSpec
from services.engine.engine import Engine
from services.methods.context import SaeInUse
from tests.services.methods.conftest import SPEC, Laboratory
from tests.services.methods.feature_reference import EXAMPLE, FEATURES, Plain, made, served
from tests.services.methods.saes import in_use
from tests.services.methods.test_direct_logit_attribution import Linearised, array

LAST = 2
SHORT = EXAMPLE | {"prompt": "The Eiffel Tower is in Paris and"}
SITES = [("resid_pre", 1), ("resid_post", 1), ("resid_post", LAST), ("attn_out", 1), ("mlp_out", 0)]


def body(*examples: dict[str, Any], model: str = "tiny-llama", **method: Any) -> dict[str, Any]:
    asked = {"type": "direct_logit_attribution", "sae": "sae", "top_k": FEATURES, **method}
    return {"kind": "attribution", "model": model, "method": asked, "examples": [*examples] or [EXAMPLE]}


def run(laboratory: Laboratory, engine: Engine, used: SaeInUse, asked: dict[str, Any]) -> AttributionResult:
    result = Laboratory(engine, served(laboratory, used.facts)).run(asked, used)
    assert isinstance(result, AttributionResult)
    return result


def outcome_of(result: AttributionResult) -> tuple[DirectLogitOutcome, FeatureSplit]:
    assert isinstance(result.attribution, DirectLogitOutcome)
    assert result.attribution.split is not None
    return result.attribution, result.attribution.split


def everything(split: FeatureSplit) -> float:
    """The sum of all that is reported."""
    outside = sum(array(getattr(split.outside, name)).sum() for name in type(split.outside).model_fields)
    features = sum(feature.contribution.mean for feature in split.features) + split.other_features.mean
    return float(features + split.b_dec.mean + split.error.mean + split.over_norm.mean + outside)


class Plainly(Plain):
    """The split at the last position, with nothing of lensd."""

    def __init__(self, laboratory: Laboratory, used: SaeInUse, outcome: DirectLogitOutcome) -> None:
        super().__init__(laboratory, used, outcome.examples[0].tokens.ids, None)
        last = ("resid_post", len(self.reference.blocks) - 1)
        self.final: Tensor = self.reference.activations(self.base, [last])[last][-1]
        W_U = self.reference.model.get_output_embeddings().weight
        self.direction = W_U[self.answer] - W_U[self.foil]
        self.share = Linearised(self.reference, self.final, self.direction)

    def written(self, index: int) -> Tensor:
        """What a feature writes at the last position."""
        written: Tensor = self.f[-1, index] * self.sae.W_dec[index].double()
        return written

    def removed(self, index: int) -> float:
        """The metric without it, less the metric, through the norm itself."""
        norm = self.reference.model.get_submodule(self.reference.layout.final_norm)
        return float((norm(self.final - self.written(index)) - norm(self.final)) @ self.direction)


@pytest.mark.parametrize(("site", "layer"), SITES)
def test_every_part_of_the_split_equals_the_hand_written_product(
    laboratory: Laboratory, engine: Engine, site: str, layer: int
) -> None:
    used = made(site, layer)
    outcome, split = outcome_of(run(laboratory, engine, used, body()))
    plain = Plainly(laboratory, used, outcome)
    with torch.no_grad():
        assert len(split.features) == 8
        for feature in split.features:
            contribution = plain.share(plain.written(feature.index))
            assert feature.activation.mean == pytest.approx(float(plain.f[-1, feature.index]), rel=1e-4)
            assert feature.contribution.mean == pytest.approx(contribution, abs=1e-4)
            assert feature.removed_at_held_scale.mean == pytest.approx(-contribution, abs=1e-4)
            assert feature.removed.mean == pytest.approx(plain.removed(feature.index), abs=1e-4)
        error = plain.x[-1] - plain.f[-1] @ used.sae.W_dec.double() - used.sae.b_dec.double()
        assert split.error.mean == pytest.approx(plain.share(error), abs=1e-4)
        assert split.b_dec.mean == pytest.approx(plain.share(used.sae.b_dec.double()), abs=1e-4)
        metric = float(plain.metric(plain.reference.logits(plain.base)))
    assert everything(split) == pytest.approx(metric, abs=1e-4)
    assert split.active == len(split.features) == 8
    assert split.over_norm.mean == 0.0


@pytest.mark.parametrize(
    ("family", "site"),
    [
        *((family, site) for family in ("llama", "gpt2", "gemma2") for site in ("resid_mid", "attn_out", "z")),
        *(
            (family, site)
            for family in ("gpt2", "gpt_neox", "gemma2")
            for site in ("resid_pre", "resid_post", "mlp_out")
        ),
    ],
)
def test_the_terms_add_up_to_the_metric_in_every_family(
    laboratory: Laboratory, engine: Engine, family: str, site: str
) -> None:
    model = f"tiny-{family.replace('_', '-')}"
    facts = laboratory.catalogue.model(model)
    generator = torch.Generator().manual_seed(3)
    width = facts.heads * facts.d_head if site == "z" else facts.d_model
    shapes = {"W_enc": (width, FEATURES), "W_dec": (FEATURES, width), "b_dec": (width,)}
    weights = {name: torch.randn(shape, generator=generator) / width**0.5 for name, shape in shapes.items()}
    used = in_use(made(site, 1, **weights).sae, model, site=site, layer=1)
    result = run(laboratory, engine, used, body(model=model))
    outcome, split = outcome_of(result)
    (example,), (own,) = outcome.examples, split.examples
    assert result.warnings == ()
    assert everything(split) == pytest.approx(example.metric, abs=1e-3)
    assert own.gap == pytest.approx(abs(example.metric - own.sum_of_terms), abs=1e-6)
    assert own.gap < 1e-3


def test_features_of_z_write_through_the_heads_output(laboratory: Laboratory, engine: Engine) -> None:
    used = made("z", 1, width=48)
    outcome, split = outcome_of(run(laboratory, engine, used, body()))
    plain = Plainly(laboratory, used, outcome)
    with torch.no_grad():
        W_O = plain.reference.projection(1).weight.T
        for feature in split.features:
            written = plain.written(feature.index) @ W_O
            assert feature.contribution.mean == pytest.approx(plain.share(written), abs=1e-4)
    np.testing.assert_array_equal(array(split.outside.heads)[[0, 2]], array(outcome.terms.heads)[[0, 2]])
    assert not array(split.outside.heads)[1].any()
    np.testing.assert_array_equal(array(split.outside.attention_bias), array(outcome.terms.attention_bias))


def test_what_is_split_is_the_sum_of_the_terms_that_it_replaces(laboratory: Laboratory, engine: Engine) -> None:
    outcome, split = outcome_of(run(laboratory, engine, made(layer=1), body()))
    terms, outside = outcome.terms, split.outside
    np.testing.assert_array_equal(array(outside.heads)[2], array(terms.heads)[2])
    np.testing.assert_array_equal(array(outside.mlps)[2], array(terms.mlps)[2])
    assert not array(outside.heads)[:2].any()
    assert not array(outside.mlps)[:2].any()
    assert not array(outside.embedding).any()
    inside = array(terms.heads)[:2].sum() + array(terms.mlps)[:2].sum() + array(terms.embedding)
    inside += array(terms.attention_bias)[:2].sum()
    parts = sum(feature.contribution.mean for feature in split.features) + split.b_dec.mean + split.error.mean
    assert parts == pytest.approx(float(inside), abs=1e-4)


def test_features_that_are_not_listed_are_one_term(laboratory: Laboratory, engine: Engine) -> None:
    used = made()
    _, every = outcome_of(run(laboratory, engine, used, body()))
    _, few = outcome_of(run(laboratory, engine, used, body(top_k=3)))
    assert [feature.index for feature in few.features] == [feature.index for feature in every.features[:3]]
    rest = sum(feature.contribution.mean for feature in every.features[3:])
    assert few.other_features.mean == pytest.approx(rest, abs=1e-9)
    magnitudes = [abs(feature.contribution.mean) for feature in every.features]
    assert magnitudes == sorted(magnitudes, reverse=True)


def test_a_token_over_the_norm_threshold_is_one_term_as_a_whole(laboratory: Laboratory, engine: Engine) -> None:
    used = made(norm_threshold=1e-3)
    result = run(laboratory, engine, used, body())
    outcome, split = outcome_of(result)
    plain = Plainly(laboratory, used, outcome)
    with torch.no_grad():
        assert split.over_norm.mean == pytest.approx(plain.share(plain.x[-1]), abs=1e-4)
    assert (split.features, split.active, split.b_dec.mean, split.error.mean) == ((), 0, 0.0, 0.0)
    assert split.examples[0].over_norm
    assert everything(split) == pytest.approx(outcome.examples[0].metric, abs=1e-4)
    assert result.warnings == ("1 token at the metric's position is over the SAE's norm threshold: not encoded",)


def test_many_examples_are_the_mean_of_each_ones_own(laboratory: Laboratory, engine: Engine) -> None:
    used = made()
    singles = [outcome_of(run(laboratory, engine, used, body(example)))[1] for example in (EXAMPLE, SHORT)]
    outcome, split = outcome_of(run(laboratory, engine, used, body(EXAMPLE, SHORT) | {"per_example": True}))
    own = [{feature.index: feature for feature in single.features} for single in singles]
    for place, feature in enumerate(split.features):
        values = [one[feature.index].contribution.mean if feature.index in one else 0.0 for one in own]
        assert feature.contribution.mean == pytest.approx(np.mean(values), abs=1e-5)
        assert [example.features[place] for example in split.examples if example.features] == pytest.approx(
            values, abs=1e-5
        )
        removed = [one[feature.index].removed.mean if feature.index in one else 0.0 for one in own]
        assert feature.removed.mean == pytest.approx(np.mean(removed), abs=1e-5)
    assert split.error.count == 2
    assert [example.sum_of_terms for example in split.examples] == pytest.approx(
        [example.metric for example in outcome.examples], abs=1e-4
    )


def test_the_terms_at_every_position_stay_beside_the_split_of_the_last_layer(
    laboratory: Laboratory, engine: Engine
) -> None:
    used = made(layer=LAST)
    alone, split = outcome_of(run(laboratory, engine, used, body()))
    outcome, same = outcome_of(run(laboratory, engine, used, body(by_position=True, by_source=True)))
    assert [feature.index for feature in same.features] == [feature.index for feature in split.features]
    assert everything(same) == pytest.approx(alone.examples[0].metric, abs=1e-4)
    assert outcome.by_position is not None
    np.testing.assert_allclose(array(outcome.by_position.mlps)[:, -1], array(alone.terms.mlps), atol=1e-5)


def test_a_feature_that_writes_the_answer_comes_first(laboratory: Laboratory, engine: Engine) -> None:
    """Whatever is at the site, one feature fires, and its direction is answer minus foil in the unembedding."""
    used = made()
    unembedding = laboratory.model("tiny-llama").bridge.unembed.original_component.weight
    read = laboratory.catalogue.tokenizer("tiny-llama").read
    answer, foil = (unembedding[read(EXAMPLE[name], bos=False).ids[0]] for name in ("answer", "foil"))
    W_dec, W_enc, b_enc = used.sae.W_dec.clone(), used.sae.W_enc.clone(), used.sae.b_enc.clone()
    W_dec[11] = (answer - foil).detach() / (answer - foil).norm()
    W_enc[:, 11], b_enc[11] = 0.0, 50.0
    _, split = outcome_of(run(laboratory, engine, made(W_dec=W_dec, W_enc=W_enc, b_enc=b_enc), body()))
    assert split.features[0].index == 11
    assert split.features[0].contribution.mean > 0 > split.features[0].removed.mean


def test_without_an_sae_there_is_no_split(laboratory: Laboratory) -> None:
    result: Any = laboratory.run(body(sae=None))
    assert result.attribution.split is None


def test_a_job_is_billed_what_was_estimated(laboratory: Laboratory, engine: Engine) -> None:
    used = made()
    catalogue = served(laboratory, used.facts)
    asked = body(EXAMPLE, SHORT)
    estimate = resolve(SPEC.validate_json(json.dumps(asked)), catalogue, Limits()).cost.token_layers
    assert Laboratory(engine, catalogue).run(asked, used).usage.token_layers / estimate == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(
    ("facts", "method", "code"),
    [
        ({"model": "tiny-gpt2"}, {}, ErrorCode.SAE_MISMATCH),
        ({"normalize_activations": "layer_norm"}, {}, ErrorCode.SAE_MISMATCH),
        ({}, {"sae": "none"}, ErrorCode.UNKNOWN_SAE),
    ],
)
def test_an_sae_that_does_not_fit_is_refused_where_it_is_named(
    laboratory: Laboratory, facts: dict[str, Any], method: dict[str, Any], code: ErrorCode
) -> None:
    catalogue = served(laboratory, made().facts.model_copy(update=facts))
    with pytest.raises(InvalidSpec) as refusal:
        resolve(SPEC.validate_json(json.dumps(body(**method))), catalogue, Limits())
    (violation,) = refusal.value.violations
    assert (violation.pointer, violation.code) == ("/method/sae", code)
