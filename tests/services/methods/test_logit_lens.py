"""The logit lens against Hugging Face's own norm and unembedding in float64, and against the model's own logits."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from services.catalogue.resolve import Limits, resolve
from services.contracts.errors import ErrorCode, InvalidSpec
from services.contracts.logit_lens import LogitLensResult
from services.contracts.tensor import InlineTensor
from tests.brute_force import Reference
from tests.services.methods.conftest import FAMILIES, SPEC, Laboratory

PROMPT = "When John and Mary went to the shops, John gave the bag to"
EXAMPLE = {"prompt": PROMPT, "answer": " Mary", "foil": " John"}
LAYERS = 3


def job(family: str, **changes: Any) -> dict[str, Any]:
    model = family if family.startswith("smollm2") else f"tiny-{family.replace('_', '-')}"
    return {"kind": "logit_lens", "model": model, "examples": [EXAMPLE], **changes}


def run(laboratory: Laboratory, body: dict[str, Any]) -> LogitLensResult:
    result = laboratory.run(body)
    assert isinstance(result, LogitLensResult)
    return result


def array(tensor: Any) -> Any:
    assert isinstance(tensor, InlineTensor)
    return tensor.array()


def refused(laboratory: Laboratory, **changes: Any) -> list[tuple[str, str]]:
    with pytest.raises(InvalidSpec) as error:
        resolve(SPEC.validate_json(json.dumps(job("llama", **changes))), laboratory.catalogue, Limits())
    return [(violation.pointer, violation.code) for violation in error.value.violations]


def expected_logits(reference: Reference, ids: tuple[int, ...]) -> Tensor:
    """[layer, position, vocabulary]: every residual stream through the model's own last modules."""
    places = [("resid_pre", 0), *(("resid_post", layer) for layer in range(LAYERS))]
    streams = reference.activations(ids, places)
    norm = reference.model.get_submodule(reference.layout.final_norm)
    with torch.no_grad():
        logits: Tensor = reference.model.get_output_embeddings()(
            norm(torch.stack([streams[place] for place in places]))
        )
    cap = getattr(reference.model.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * (logits / cap).tanh()


def tokens_of(laboratory: Laboratory, model: str) -> tuple[int, int]:
    tokenizer = laboratory.catalogue.tokenizer(model)
    mary, john = (tokenizer.read(name, bos=False).ids[0] for name in (" Mary", " John"))
    return mary, john


@pytest.mark.parametrize("family", FAMILIES)
def test_the_whole_table_equals_the_float64_one(laboratory: Laboratory, family: str) -> None:
    body = job(family, metric={"type": "logit_diff"})
    result = run(laboratory, body)
    assert result.layers == ("embed", 0, 1, 2)
    (example,) = result.examples
    logits = expected_logits(Reference(laboratory.folder(body["model"])), example.tokens.ids)
    log_probs = logits.log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    kl = (log_probs[-1].exp() * (log_probs[-1] - log_probs)).sum(-1)
    np.testing.assert_allclose(array(example.entropy), entropy, atol=1e-4)
    np.testing.assert_allclose(array(example.kl), kl, atol=1e-4)
    mary, john = tokens_of(laboratory, body["model"])
    np.testing.assert_allclose(array(example.metric), logits[..., mary] - logits[..., john], atol=2e-4)
    assert example.positions == tuple(range(len(example.tokens.ids)))
    for layer, of_layer in enumerate(example.top):
        for position, listed in enumerate(of_layer):
            own, own_probs = logits[layer, position], log_probs[layer, position].exp()
            np.testing.assert_allclose([token.logit for token in listed], own.topk(5).values, atol=1e-4)
            for token in listed:
                assert token.logit == pytest.approx(float(own[token.token_id]), abs=1e-4)
                assert token.probability == pytest.approx(float(own_probs[token.token_id]), abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_row_is_what_the_model_itself_says(laboratory: Laboratory, family: str) -> None:
    body = job(family, top_k=3, layers=[2], metric={"type": "log_prob"})
    (example,) = run(laboratory, body).examples
    logits = Reference(laboratory.folder(body["model"])).logits(example.tokens.ids)
    mary, _ = tokens_of(laboratory, body["model"])
    np.testing.assert_allclose(array(example.metric)[0], logits.log_softmax(-1)[:, mary], atol=1e-4)
    assert array(example.kl).max() == 0.0
    found = [[token.logit for token in listed] for listed in example.top[0]]
    np.testing.assert_allclose(found, logits.topk(3).values, atol=1e-4)


def test_layers_and_positions_are_read_as_asked_in_their_order(laboratory: Laboratory) -> None:
    whole = run(laboratory, job("gemma2", top_k=0))
    chosen = run(laboratory, job("gemma2", top_k=0, layers=[1, "embed"], positions=[-1, 2]))
    last = len(whole.examples[0].tokens.ids) - 1
    assert chosen.layers == (1, "embed")
    assert chosen.examples[0].positions == (last, 2)
    for name in ("entropy", "kl"):
        table, cut = array(getattr(whole.examples[0], name)), array(getattr(chosen.examples[0], name))
        np.testing.assert_allclose(cut, table[[2, 0]][:, [last, 2]], atol=1e-5)
    assert chosen.examples[0].metric is None
    assert chosen.examples[0].top == (((), ()), ((), ()))


def test_sets_of_answers_are_weighed_at_every_cell(laboratory: Laboratory) -> None:
    metric = {"type": "prob_diff", "answers": [" Mary"], "foils": [" John"]}
    body = job("llama", metric=metric, examples=[{"prompt": PROMPT}, {"prompt": "The Eiffel Tower is in"}])
    result = run(laboratory, body)
    mary, john = tokens_of(laboratory, "tiny-llama")
    reference = Reference(laboratory.folder("tiny-llama"))
    for example in result.examples:
        probabilities = expected_logits(reference, example.tokens.ids).softmax(-1)
        expected = probabilities[..., mary] - probabilities[..., john]
        np.testing.assert_allclose(array(example.metric), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "pointer", "code"),
    [
        ({"layers": ["embed", 3]}, "/layers/1", ErrorCode.UNKNOWN_LAYER),
        ({"positions": [0, 99]}, "/positions/1", ErrorCode.UNKNOWN_POSITION),
        ({"positions": [1, 1]}, "/positions", ErrorCode.UNKNOWN_POSITION),
        ({"metric": {"type": "kl_divergence"}}, "/metric/type", ErrorCode.UNSUPPORTED_METRIC),
        ({"metric": {"type": "cross_entropy"}}, "/metric/type", ErrorCode.UNSUPPORTED_METRIC),
        ({"metric": {"type": "logit", "position": 3}}, "/metric/position", ErrorCode.UNSUPPORTED_METRIC),
        (
            {"metric": {"type": "logit"}, "examples": [{"prompt": "The Eiffel"}]},
            "/examples/0",
            ErrorCode.INVALID_ANSWER,
        ),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_pointer(
    laboratory: Laboratory, changes: dict[str, Any], pointer: str, code: ErrorCode
) -> None:
    assert refused(laboratory, **changes) == [(pointer, code)]


@pytest.mark.parametrize("changes", [{}, {"layers": [0, 2], "positions": [-1], "metric": {"type": "logit_diff"}}])
def test_the_estimate_is_the_bill_and_bounds_the_size(laboratory: Laboratory, changes: dict[str, Any]) -> None:
    other = {"prompt": "The Eiffel Tower is in", "answer": " is", "foil": " John"}
    body = job("llama", examples=[EXAMPLE, other], **changes)
    cost = resolve(SPEC.validate_json(json.dumps(body)), laboratory.catalogue, Limits()).cost
    result = run(laboratory, body)
    assert result.usage.token_layers == pytest.approx(cost.token_layers, rel=0.02)
    listed = sum(len(example.model_dump_json(include={"top"})) for example in result.examples)
    tensors = 2 + ("metric" in changes)
    floats = tensors * 4 * sum(array(example.kl).size for example in result.examples)
    assert cost.output_bytes == pytest.approx(listed + floats, rel=0.25)


def test_smollm2_turns_to_its_answer_on_the_way_up(smollm2: Laboratory) -> None:
    body = job("smollm2-135m", positions=[-1], metric={"type": "logit_diff"}, top_k=1)
    (example,) = run(smollm2, body).examples
    difference, kl = array(example.metric)[:, 0], array(example.kl)[:, 0]
    assert difference[-1] == pytest.approx(3.12, abs=0.02)
    assert difference[:10].max() < 0.0
    assert kl[:10].min() > 1.0
    assert kl[-1] == 0.0
    assert example.top[-1][0][0].token == " Mary"
