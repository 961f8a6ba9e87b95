"""Attention jobs against scores counted by hand on plain float64 patterns, and TransformerLens' head detector."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformer_lens import head_detector

from services.catalogue.resolve import Limits, resolve
from services.contracts.attention import AttentionResult, AttentionSpec, HeadScores, RandomTokens
from services.contracts.errors import ErrorCode, InvalidSpec
from services.contracts.model import SiteFacts
from services.contracts.site import SiteName
from services.contracts.tensor import InlineTensor, Statistic
from services.engine.ticket import JobTicket
from services.engine.weights import Weights
from services.methods.attention import Reader
from services.methods.context import MethodContext
from services.methods.head_scores import is_among_largest
from tests.brute_force import Reference
from tests.services.methods.conftest import FAMILIES, SPEC, Laboratory

PROMPT = "When John and Mary went to the shops, John gave the bag to Mary. The Eiffel Tower is in Paris"
ATTENTION = ("previous_token", "duplicate_token", "induction")
LAYERS, HEADS = 3, 4


def job(family: str, **changes: Any) -> dict[str, Any]:
    model = family if family.startswith("smollm2") else f"tiny-{family.replace('_', '-')}"
    return {"kind": "attention", "model": model, **changes}


def run(laboratory: Laboratory, body: dict[str, Any]) -> AttentionResult:
    result = laboratory.run(body)
    assert isinstance(result, AttentionResult)
    return result


def refused(laboratory: Laboratory, **changes: Any) -> list[tuple[str, str]]:
    with pytest.raises(InvalidSpec) as error:
        resolve(SPEC.validate_json(json.dumps(job("llama", **changes))), laboratory.catalogue, Limits())
    return [(violation.pointer, violation.code) for violation in error.value.violations]


def array(estimate: Any) -> Any:
    assert isinstance(estimate, InlineTensor)
    return estimate.array()


def mean(estimate: Any) -> Any:
    return array(estimate.mean if isinstance(estimate, Statistic) else estimate)


def of_kind(scores: HeadScores | None, kind: str) -> Any:
    assert scores is not None
    return getattr(scores, kind)


def patterns(reference: Reference, ids: Sequence[int]) -> Tensor:
    """[layer, head, query, key]"""
    with torch.no_grad():
        found = reference.model(torch.tensor([list(ids)]), output_attentions=True).attentions
    return torch.stack([layer[0] for layer in found])


def counted(kind: str, pattern: Tensor, ids: Sequence[int], first: int) -> float:
    """One head's score, written out token by token."""
    per_query: list[float] = []
    for query in range(first + 1, len(ids)):
        earlier = [key for key in range(first, query) if ids[key] == ids[query]]
        keys = {
            "previous_token": [query - 1],
            "duplicate_token": earlier,
            "induction": [key + 1 for key in earlier if key + 1 < query],
        }[kind]
        if keys:
            per_query.append(float(sum(pattern[query, key] for key in keys)))
    return sum(per_query) / len(per_query)


@pytest.mark.parametrize("kind", ATTENTION)
@pytest.mark.parametrize("family", FAMILIES)
def test_attention_scores_equal_those_counted_by_hand(laboratory: Laboratory, family: str, kind: str) -> None:
    body = job(family, prompts=[PROMPT])
    result = run(laboratory, body)
    ids = result.prompts[0].tokens.ids
    first = int(result.prompts[0].tokens.bos_prepended)
    found = patterns(Reference(laboratory.folder(body["model"])), ids)
    expected = [[counted(kind, head, ids, first) for head in layer] for layer in found]
    np.testing.assert_allclose(array(of_kind(result.scores, kind)), expected, atol=1e-5)
    assert result.random_scores is None


@pytest.mark.parametrize("kind", ATTENTION)
def test_attention_scores_are_transformer_lens_detectors_over_the_tokens_that_count(
    laboratory: Laboratory, kind: str
) -> None:
    """The detector divides by all queries, lensd by those that have somewhere to look."""
    result = run(laboratory, job("gpt2", prompts=[PROMPT]))
    ids = torch.tensor([result.prompts[0].tokens.ids])
    assert (ids[0, 1:] != ids[0, :-1]).all(), "the detector counts a token's attention to itself after its like"
    mask = getattr(head_detector, f"get_{kind}_head_detection_pattern")(ids)
    with torch.no_grad():
        _, cache = laboratory.model("tiny-gpt2").bridge.run_with_cache(ids)
    share = ids.shape[1] / float((mask.sum(dim=1) > 0).sum())
    scores = array(of_kind(result.scores, kind))
    for layer in range(LAYERS):
        for head in range(HEADS):
            expected = head_detector.compute_head_attention_similarity_score(
                cache[f"blocks.{layer}.attn.hook_pattern"][0, head],
                mask,
                exclude_bos=False,
                exclude_current_token=False,
                error_measure="mul",
            )
            assert scores[layer, head] == pytest.approx(expected * share, abs=1e-5)


def llama_writes(reference: Reference, layer: int, head: int, residual: Tensor) -> Tensor:
    block = reference.blocks[layer]
    kv = head // 2
    rows = slice(kv * reference.d_head, (kv + 1) * reference.d_head)
    columns = slice(head * reference.d_head, (head + 1) * reference.d_head)
    attention, normed = block.self_attn, block.input_layernorm(residual)
    value = normed @ attention.v_proj.weight[rows].T + attention.v_proj.bias[rows]
    written: Tensor = value @ attention.o_proj.weight[:, columns].T
    return written


def gpt2_writes(reference: Reference, layer: int, head: int, residual: Tensor) -> Tensor:
    block, width = reference.blocks[layer], reference.d_head
    start = 2 * HEADS * width + head * width
    normed = block.ln_1(residual)
    joint = block.attn.c_attn
    value = normed @ joint.weight[:, start : start + width] + joint.bias[start : start + width]
    written: Tensor = value @ block.attn.c_proj.weight[head * width : (head + 1) * width]
    return written


def gemma2_writes(reference: Reference, layer: int, head: int, residual: Tensor) -> Tensor:
    block, width = reference.blocks[layer], reference.d_head
    kv = head // 2
    value = block.input_layernorm(residual) @ block.self_attn.v_proj.weight[kv * width : (kv + 1) * width].T
    written: Tensor = block.post_attention_layernorm(
        value @ block.self_attn.o_proj.weight[:, head * width : (head + 1) * width].T
    )
    return written


@pytest.mark.parametrize(
    ("family", "writes"), [("llama", llama_writes), ("gpt2", gpt2_writes), ("gemma2", gemma2_writes)]
)
def test_copying_equals_the_ov_circuit_written_out(
    laboratory: Laboratory, family: str, writes: Callable[[Reference, int, int, Tensor], Tensor]
) -> None:
    body = job(family, prompts=[PROMPT])
    result = run(laboratory, body)
    ids = torch.tensor(result.prompts[0].tokens.ids)
    first = int(result.prompts[0].tokens.bos_prepended)
    reference = Reference(laboratory.folder(body["model"]))
    residual = reference.activations(ids.tolist(), [("resid_post", 0)])["resid_post", 0][first:]
    norm, unembed = reference.model.get_submodule(reference.layout.final_norm), reference.model.get_output_embeddings()
    with torch.no_grad():
        logits = [[unembed(norm(writes(reference, at, head, residual))) for head in range(4)] for at in range(LAYERS)]
    expected = [
        [float((head.topk(5).indices == ids[first:, None]).any(dim=1).double().mean()) for head in layer]
        for layer in logits
    ]
    np.testing.assert_allclose(array(of_kind(result.scores, "copying")), expected, atol=1e-6)
    assert np.max(expected) > 0.0


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_looking_at_some_logits_first_changes_nothing(laboratory: Laboratory, family: str) -> None:
    weights = Weights(laboratory.model(f"tiny-{family.replace('_', '-')}"))
    generator = torch.Generator().manual_seed(1)
    normed = torch.randn((200, 32), generator=generator)
    logits = normed @ weights.W_U + (0.0 if weights.b_U is None else weights.b_U)
    own = logits.argsort(dim=1, descending=True)[torch.arange(200), torch.arange(200) % 10]
    expected = torch.arange(200) % 10 < 5
    for looks in ((), (1, 16), (512, 4_096)):
        assert is_among_largest(normed, own, weights, looks).equal(expected)


def test_chosen_patterns_come_as_plain_transformers_has_them_with_and_without_scores(laboratory: Laboratory) -> None:
    heads = [{"layer": 2, "head": 3}, {"layer": 0, "head": 1}]
    body = job("llama", prompts=[PROMPT, "The Eiffel Tower"], patterns=heads)
    reference = Reference(laboratory.folder("tiny-llama"))
    for scores in (True, False):
        result = run(laboratory, body | {"scores": scores})
        assert [(head.layer, head.head) for head in result.heads] == [(2, 3), (0, 1)]
        assert (result.scores is not None) == scores
        for prompt in result.prompts:
            expected = patterns(reference, prompt.tokens.ids)[[2, 0], [3, 1]]
            assert isinstance(prompt.patterns, InlineTensor)
            assert prompt.patterns.dims == ("head", "query", "key")
            np.testing.assert_allclose(prompt.patterns.array(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "bos", "starts"), [("llama", None, 1), ("llama", False, 0), ("gpt2", None, 0), ("gpt2", True, 1)]
)
def test_on_random_tokens_induction_is_the_attention_to_what_followed(
    laboratory: Laboratory, family: str, bos: bool | None, starts: int
) -> None:
    body = job(family, random_tokens={"sequences": 3, "length": 9, "seed": 4}, bos=bos)
    result = run(laboratory, body)
    assert result.random_sequences is not None
    reference = Reference(laboratory.folder(body["model"]))
    expected = []
    for sequence in result.random_sequences:
        half = sequence[starts : starts + 9]
        assert sequence == (0,) * starts + half * 2
        assert len(set(half)) == 9
        assert 0 not in half
        second = range(starts + 9, starts + 18)
        found = patterns(reference, sequence)
        expected.append(torch.stack([found[:, :, query, query - 9 + 1] for query in second]).mean(dim=0))
    scores = of_kind(result.random_scores, "induction")
    assert scores.count == 3
    np.testing.assert_allclose(mean(scores), torch.stack(expected).mean(dim=0), atol=1e-5)
    assert result.scores is None
    assert result.provenance.seed == 4


def test_the_seed_decides_the_sequences(laboratory: Laboratory) -> None:
    one, same, other = (
        run(laboratory, job("gpt2", random_tokens={"sequences": 2, "length": 5, "seed": seed})).random_sequences
        for seed in (1, 1, 2)
    )
    assert one == same
    assert one != other


def test_prompts_without_a_repeated_token_do_not_count_and_alone_give_nulls(laboratory: Laboratory) -> None:
    plain = {"type": "tokens", "tokens": [7, 8, 9]}
    repeating = {"type": "tokens", "tokens": [7, 8, 7, 9]}
    alone = run(laboratory, job("gpt2", prompts=[plain]))
    assert np.isnan(array(of_kind(alone.scores, "induction"))).all()
    assert np.isnan(array(of_kind(alone.scores, "duplicate_token"))).all()
    assert not np.isnan(array(of_kind(alone.scores, "previous_token"))).any()
    together = run(laboratory, job("gpt2", prompts=[plain, repeating]))
    only = run(laboratory, job("gpt2", prompts=[repeating]))
    np.testing.assert_allclose(
        array(of_kind(together.scores, "induction")), array(of_kind(only.scores, "induction")), atol=1e-6
    )
    assert isinstance(of_kind(together.scores, "previous_token"), Statistic)


def test_a_prompt_of_bos_alone_has_nothing_to_score(laboratory: Laboratory) -> None:
    result = run(laboratory, job("gpt2", prompts=[{"type": "tokens", "tokens": [0]}]))
    for kind in (*ATTENTION, "copying"):
        assert np.isnan(array(of_kind(result.scores, kind))).all()


def test_reading_some_layers_at_a_time_gives_the_same_scores_and_patterns(laboratory: Laboratory) -> None:
    spec = SPEC.validate_json(
        json.dumps(job("llama", prompts=[PROMPT, "The Eiffel Tower"], patterns=[{"layer": 2, "head": 1}]))
    )
    assert isinstance(spec, AttentionSpec)
    inputs = resolve(spec, laboratory.catalogue, Limits()).inputs
    tokens = [prompt.ids for prompt in inputs.prompts]

    def read(held_bytes: int) -> Any:
        context = MethodContext(
            model=laboratory.model("tiny-llama"),
            engine=laboratory.engine,
            ticket=JobTicket("job", owner=f"holding {held_bytes}"),
            inputs=inputs,
            tokenizer=laboratory.catalogue.tokenizer("tiny-llama"),
        )
        return Reader(context, context.weights(), scores=True, held_bytes=held_bytes).read(tokens, spec.patterns)

    for whole, piecewise in zip(read(2**28), read(1), strict=True):
        for kind in (*ATTENTION, "copying"):
            one, other = torch.stack(whole.scores[kind]), torch.stack(piecewise.scores[kind])
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6, equal_nan=True)
        torch.testing.assert_close(whole.patterns[spec.patterns[0]], piecewise.patterns[spec.patterns[0]])


@pytest.mark.parametrize(
    ("changes", "pointer", "code"),
    [
        ({"prompts": [PROMPT], "patterns": [{"layer": 3, "head": 0}]}, "/patterns/0/layer", ErrorCode.UNKNOWN_LAYER),
        ({"prompts": [PROMPT], "patterns": [{"layer": 0, "head": 4}]}, "/patterns/0/head", ErrorCode.UNKNOWN_HEAD),
        ({}, "/prompts", ErrorCode.INVALID_REQUEST),
        ({"prompts": [PROMPT], "scores": False}, "/patterns", ErrorCode.INVALID_REQUEST),
        ({"random_tokens": {"length": 64}}, "/random_tokens/length", ErrorCode.PROMPT_TOO_LONG),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_pointer(
    laboratory: Laboratory, changes: dict[str, Any], pointer: str, code: ErrorCode
) -> None:
    assert refused(laboratory, **changes) == [(pointer, code)]


def test_a_model_whose_patterns_cannot_be_read_is_refused_with_the_reason(laboratory: Laboratory) -> None:
    facts = laboratory.catalogue.model("tiny-llama")
    blind = SiteFacts(name=SiteName.PATTERN, readable=False, writable=False, reason="its attention is fused")
    without = facts.model_copy(update={"sites": (blind,)})
    spec = AttentionSpec(kind="attention", model="tiny-llama", random_tokens=RandomTokens())
    (violation,) = spec.violations(without)
    assert violation.code is ErrorCode.UNKNOWN_SITE
    assert violation.message == "tiny-llama cannot read pattern: its attention is fused"


@pytest.mark.parametrize(
    "changes",
    [
        {"prompts": [PROMPT, "The Eiffel Tower"]},
        {"prompts": [PROMPT], "scores": False, "patterns": [{"layer": 1, "head": 0}, {"layer": 0, "head": 0}]},
        {"prompts": [PROMPT], "random_tokens": {"sequences": 3, "length": 7}, "patterns": [{"layer": 0, "head": 0}]},
    ],
)
def test_the_estimate_is_the_bill_and_bounds_the_size(laboratory: Laboratory, changes: dict[str, Any]) -> None:
    body = job("llama", **changes)
    cost = resolve(SPEC.validate_json(json.dumps(body)), laboratory.catalogue, Limits()).cost
    result = run(laboratory, body)
    assert result.usage.token_layers == pytest.approx(cost.token_layers, rel=0.02)
    drawn = sum(
        prompt.patterns.array().nbytes for prompt in result.prompts if isinstance(prompt.patterns, InlineTensor)
    )
    scores = 2 * 4 * 2 * LAYERS * HEADS * 4 if changes.get("scores", True) else 0
    ids = 7 * sum(len(sequence) for sequence in result.random_sequences or ())
    assert cost.output_bytes == drawn + scores + ids


def test_smollm2s_induction_heads_are_found(smollm2: Laboratory) -> None:
    result = run(smollm2, job("smollm2-135m", random_tokens={"sequences": 4}))
    induction = mean(of_kind(result.random_scores, "induction"))
    strongest = np.argsort(induction, axis=None)[::-1][:5]
    assert induction.shape == (30, 9)
    assert [divmod(int(cell), 9) for cell in strongest[:1]] == [(18, 6)]
    assert induction[18, 6] > 0.8
    assert induction[17, 3] > 0.6
