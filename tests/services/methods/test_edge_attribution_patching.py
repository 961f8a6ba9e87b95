"""Edge attribution patching against finite differences on plain transformers in float64."""

import json
import random
from typing import Any

import numpy as np
import pytest

from services.catalogue.resolve import Limits, resolve
from services.contracts.attribution import AttributionResult, AttributionSpec
from services.contracts.edge_attribution_patching import EdgeAttributionOutcome, EdgeAttributionPatching
from services.contracts.errors import ErrorCode, InvalidSpec, JobFailed
from services.contracts.node import Edge, Writer
from services.contracts.quadrature import nodes_of
from services.contracts.site import SiteName
from services.contracts.tensor import InlineTensor, Statistic
from services.engine.row import Capture, Row, Site
from services.engine.ticket import JobTicket
from services.engine.weights import Weights
from services.methods import edge_attribution_patching
from services.methods.context import MethodContext
from services.methods.edges import Edges
from services.methods.graph import Graph
from tests.services.methods.conftest import FAMILIES, SPEC, Laboratory
from tests.services.methods.edge_reference import EdgeReference, Set

CLEAN = "When John and Mary went to the shops, John gave the bag to"
CORRUPTED = "When John and Mary went to the shops, Mary gave the bag to"
PAIR = {"clean": CLEAN, "corrupted": CORRUPTED, "answer": " Mary", "foil": " John"}
OTHER = PAIR | {
    "clean": "When Mary and John went to the store, Mary gave the drink to",
    "corrupted": "When Mary and John went to the store, John gave the drink to",
}
VARIANTS = ("eap", "eap_ig_inputs", "eap_ig_activations")


def model_id(family: str) -> str:
    return family if family.startswith("smollm2") else f"tiny-{family.replace('_', '-')}"


def job(family: str, *, method: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    asked = {"type": "edge_attribution_patching", "scores": True} | (method or {})
    return {"kind": "attribution", "model": model_id(family), "method": asked, "pairs": [PAIR], **changes}


def run(laboratory: Laboratory, body: dict[str, Any]) -> EdgeAttributionOutcome:
    result = laboratory.run(body)
    assert isinstance(result, AttributionResult)
    assert isinstance(result.attribution, EdgeAttributionOutcome)
    return result.attribution


def array(estimate: Any) -> Any:
    assert isinstance(estimate, InlineTensor)
    return estimate.array()


def runs_of(reference: EdgeReference, variant: str, writer: Writer) -> list[tuple[Set, float]]:
    """The runs in which gradients are taken for a writer's edges, and their weights."""
    if variant == "eap":
        return [({}, 1.0)]
    place = ("resid_pre", 0)
    if variant == "eap_ig_activations" and writer.layer is not None:
        place = ("attn_out" if writer.kind == "head" else "mlp_out", writer.layer)
    return [(reference.between(place, alpha), weight) for alpha, weight in nodes_of("midpoint", 3)]


def chosen(outcome: EdgeAttributionOutcome) -> list[str]:
    """The largest edges, the largest of every kind of reader, and some seeded others."""
    names = [scored.edge for scored in outcome.edges]
    by_kind = [
        next(name for name in names if name.endswith(end) or name.partition("->")[2].startswith(end))
        for end in ("<q>", "<k>", "<v>", "m", "logits")
    ]
    return [*names[:5], *by_kind, *random.Random(0).sample(names, 10)]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_edge_is_what_its_reader_alone_gains_by_its_writer(
    laboratory: Laboratory, family: str, variant: str
) -> None:
    outcome = run(laboratory, job(family, method={"variant": variant, "steps": 3, "top_k": 10_000}))
    reference = EdgeReference(laboratory, model_id(family), outcome.pairs[0].tokens)
    scores = {scored.edge: scored.score.mean for scored in outcome.edges}
    largest = max(map(abs, scores.values()))
    for name in chosen(outcome):
        edge = Edge.parse(name)
        runs = runs_of(reference, variant, edge.writer)
        expected = sum(weight * reference.derivative(edge, changed) for changed, weight in runs)
        assert scores[name] == pytest.approx(expected, abs=1e-5 * largest, rel=1e-4), name


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_largest_edges_are_what_finite_differences_say(laboratory: Laboratory, family: str) -> None:
    outcome = run(laboratory, job(family, method={"steps": 3, "top_k": 8}))
    reference = EdgeReference(laboratory, model_id(family), outcome.pairs[0].tokens)
    for scored in outcome.edges:
        edge = Edge.parse(scored.edge)
        runs = runs_of(reference, "eap_ig_inputs", edge.writer)
        expected = sum(weight * reference.slope(edge, changed) for changed, weight in runs)
        assert scored.score.mean == pytest.approx(expected, rel=1e-3), scored.edge


@pytest.mark.parametrize("family", FAMILIES)
def test_the_edges_of_the_input_complete_to_the_metrics_change(laboratory: Laboratory, family: str) -> None:
    outcome = run(laboratory, job(family, method={"steps": 200}))
    (pair,) = outcome.pairs
    change = pair.baselines.clean - pair.baselines.corrupted
    gap = change - np.nansum(array(outcome.scores)[0])
    assert pair.completeness_gap == pytest.approx(gap, abs=1e-4)
    assert abs(gap) < 0.01 * abs(change)


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_a_layers_own_path_completes_to_what_its_corruption_does(laboratory: Laboratory, family: str) -> None:
    outcome = run(laboratory, job(family, method={"variant": "eap_ig_activations", "steps": 40}))
    reference = EdgeReference(laboratory, model_id(family), outcome.pairs[0].tokens)
    scores, clean = array(outcome.scores), reference.metric({})
    for place, prefix in ((("attn_out", 1), "a1."), (("mlp_out", 0), "m0")):
        writers = [index for index, name in enumerate(outcome.writers) if name.startswith(prefix)]
        expected = clean - reference.metric(reference.between(place, 0.0))
        assert np.nansum(scores[writers]) == pytest.approx(expected, rel=0.01)


def test_scores_and_named_edges_tell_the_same(laboratory: Laboratory) -> None:
    outcome = run(laboratory, job("llama", method={"top_k": 7}))
    scores = array(outcome.scores)
    assert scores.shape == (len(outcome.writers), len(outcome.readers)) == (1 + 3 * 5, 1 + 3 * 9)
    assert np.isnan(scores[outcome.writers.index("m1"), outcome.readers.index("m1")])
    assert np.isfinite(scores[outcome.writers.index("a1.h3"), outcome.readers.index("m1")])
    assert [abs(scored.score.mean) for scored in outcome.edges] == sorted(np.abs(scores[~np.isnan(scores)]))[:-8:-1]
    for scored in outcome.edges:
        writer, reader = scored.edge.split("->")
        found = scores[outcome.writers.index(writer), outcome.readers.index(reader)]
        assert scored.score.mean == pytest.approx(found, rel=1e-6)
        assert (scored.score.standard_error, scored.score.count) == (None, 1)


def test_edges_are_counted_by_kv_head_and_by_query_head(laboratory: Laboratory) -> None:
    counts = run(laboratory, job("llama")).edge_counts
    before = [1, 6, 11]  # writers before each layer: the input, then four heads and an MLP a layer
    mlps_and_logits = sum(seen + 4 for seen in before) + 16
    assert counts.edges == 8 * sum(before) + mlps_and_logits
    assert counts.per_query_head == 12 * sum(before) + mlps_and_logits


def test_in_parallel_blocks_heads_do_not_write_to_their_layers_mlp(laboratory: Laboratory) -> None:
    outcome = run(laboratory, job("gpt_neox"))
    scores = array(outcome.scores)
    assert np.isnan(scores[outcome.writers.index("a1.h0"), outcome.readers.index("m1")])
    assert np.isfinite(scores[outcome.writers.index("a0.h0"), outcome.readers.index("m1")])


def test_many_pairs_give_means_with_standard_errors_and_their_own_scores_when_asked(laboratory: Laboratory) -> None:
    together = run(laboratory, job("llama", pairs=[PAIR, OTHER, PAIR | {"answer": 40}], per_example=True))
    alone = [run(laboratory, job("llama", pairs=[pair])) for pair in (PAIR, OTHER, PAIR | {"answer": 40})]
    scores = np.stack([array(outcome.scores) for outcome in alone])
    assert isinstance(together.scores, Statistic)
    assert together.scores.count == 3
    np.testing.assert_allclose(array(together.scores.mean), scores.mean(axis=0), atol=1e-5)
    errors = scores.std(axis=0, ddof=1) / 3**0.5
    np.testing.assert_allclose(array(together.scores.standard_error), errors, atol=1e-5)
    for pair, own, by_itself in zip(together.pairs, scores, alone, strict=True):
        np.testing.assert_allclose(array(pair.scores), own, atol=1e-5)
        assert pair.baselines.clean == pytest.approx(by_itself.pairs[0].baselines.clean, abs=1e-4)
    best = together.edges[0]
    writer, reader = (
        labels.index(name)
        for labels, name in zip((together.writers, together.readers), best.edge.split("->"), strict=True)
    )
    assert best.score.standard_error == pytest.approx(errors[writer, reader], rel=1e-3)
    assert best.score.count == 3


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_run_at_once_does_not_change_the_scores(laboratory: Laboratory, variant: str) -> None:
    body = job("gemma2", method={"variant": variant}, pairs=[PAIR, OTHER])
    expected = run(laboratory, body)
    spec = SPEC.validate_json(json.dumps(body))
    assert isinstance(spec, AttributionSpec)
    assert isinstance(spec.method, EdgeAttributionPatching)
    context = MethodContext(
        model=laboratory.model(spec.model),
        engine=laboratory.engine,
        ticket=JobTicket("job", owner="someone careful"),
        inputs=resolve(spec, laboratory.catalogue, Limits()).inputs,
        tokenizer=laboratory.catalogue.tokenizer(spec.model),
    )
    found = edge_attribution_patching.run(spec.method, spec, context, bytes_at_once=1).attribution
    assert isinstance(found, EdgeAttributionOutcome)
    assert isinstance(found.scores, Statistic)
    assert isinstance(expected.scores, Statistic)
    np.testing.assert_allclose(array(found.scores.mean), array(expected.scores.mean), atol=1e-5)


def test_post_norms_are_held_and_said_to_be(laboratory: Laboratory) -> None:
    assert "own scale" in laboratory.run(job("gemma2")).warnings[0]
    assert laboratory.run(job("llama")).warnings == ()


@pytest.mark.parametrize("metric", ["logit", "log_prob", "kl_divergence", "cross_entropy"])
def test_every_metric_can_be_shared_out(laboratory: Laboratory, metric: str) -> None:
    outcome = run(laboratory, job("gpt2", method={"steps": 200}, metric={"type": metric}))
    (pair,) = outcome.pairs
    change = pair.baselines.clean - pair.baselines.corrupted
    assert pair.completeness_gap == pytest.approx(0, abs=0.01 * abs(change))


@pytest.mark.parametrize(
    ("changes", "pointer", "code", "sentence"),
    [
        (
            {"method": {"variant": "eap"}, "metric": {"type": "kl_divergence"}},
            "/metric/type",
            ErrorCode.UNSUPPORTED_METRIC,
            "take the variant eap_ig_inputs",
        ),
        (
            {"pairs": [], "examples": [{"prompt": CLEAN, "answer": " Mary", "foil": " John"}]},
            "/pairs",
            ErrorCode.INVALID_REQUEST,
            "works on `pairs`",
        ),
        (
            {"method": {"quadrature": "trapezoid", "steps": 1}},
            "/method/steps",
            ErrorCode.INVALID_REQUEST,
            "at least 2 steps",
        ),
    ],
)
def test_what_edges_cannot_tell_is_refused(
    laboratory: Laboratory, changes: dict[str, Any], pointer: str, code: ErrorCode, sentence: str
) -> None:
    with pytest.raises(InvalidSpec) as refused:
        laboratory.run(job("llama", **changes))
    violation = refused.value.violations[0]
    assert (violation.pointer, violation.code) == (pointer, code)
    assert sentence in violation.message


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_a_model_without_a_site_that_edges_need_is_refused_with_its_reason(laboratory: Laboratory, family: str) -> None:
    facts = laboratory.catalogue.model(model_id(family))
    method = EdgeAttributionPatching(type="edge_attribution_patching")
    assert not list(method.violations(facts))
    lacking = facts.model_copy(
        update={
            "parallel_blocks": False,
            "sites": tuple(
                site.model_copy(update={"readable": False, "writable": False, "reason": "it is not there"})
                if site.name is SiteName.RESID_MID
                else site
                for site in facts.sites
            ),
        }
    )
    (violation,) = method.violations(lacking)
    assert (violation.pointer, violation.code) == ("/method/type", ErrorCode.UNKNOWN_SITE)
    assert "resid_mid: it is not there" in violation.message


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_heads_that_read_something_else_than_the_residual_stream_are_not_taken_apart(
    laboratory: Laboratory, family: str
) -> None:
    model = laboratory.model(model_id(family))
    edges = Edges(Graph.of(model.facts), Weights(model))
    row = Row((5, 17, 40, 3), captures=edges.taken_to_check())
    (outcome,) = laboratory.engine.run(model, [row], job=JobTicket("job", "someone"))
    edges.check(outcome.captures)
    keys = Capture(Site(SiteName.K, 2))
    with pytest.raises(JobFailed, match="makes the k of layer 2 of something else"):
        edges.check({**outcome.captures, keys: outcome.captures[keys].flip(0)})


def test_smollm2s_edges_complete_to_its_logit_difference(smollm2: Laboratory) -> None:
    outcome = run(smollm2, job("smollm2-135m", method={"steps": 10}))
    assert array(outcome.scores).shape == (301, 481)
    (pair,) = outcome.pairs
    change = pair.baselines.clean - pair.baselines.corrupted
    assert change == pytest.approx(7.28, abs=0.04)
    assert pair.completeness_gap is not None
    assert abs(pair.completeness_gap) < 0.15 * change
