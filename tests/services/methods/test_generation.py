"""Generation against a plain transformers loop in float64: the whole text again for every token, with hooks."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from services.catalogue.catalogue import Catalogue
from services.contracts.generation import GenerationResult, NewTokens, PromptTexts, TextScore
from services.engine.engine import Engine, EngineLimits
from services.saes.sae import JumpRelu, Relu, Sae, TopK
from tests.brute_force import Change, Place, Reference
from tests.families import D_MODEL
from tests.services.methods.conftest import Laboratory
from tests.services.methods.saes import in_use

FEATURES, K, LAYER = 64, 8, 1
PROMPTS = ["When John and Mary went to the shops", "The Eiffel Tower is in Paris"]
NEW = 8
DIRECTION = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
PLAIN = {"kind": "generation", "model": "tiny-llama", "prompts": PROMPTS, "max_new_tokens": NEW, "stop": []}
FEATURE = {"type": "feature", "sae": "sae", "index": 7}
ALONG = {"type": "direction", "layer": LAYER, "values": DIRECTION.tolist()}


def make_sae(activation: Any = None, norm_threshold: float | None = None) -> Sae:
    generator = torch.Generator().manual_seed(3)
    return Sae(
        W_enc=torch.randn(D_MODEL, FEATURES, generator=generator),
        b_enc=torch.randn(FEATURES, generator=generator),
        W_dec=torch.randn(FEATURES, D_MODEL, generator=generator) / D_MODEL**0.5,
        b_dec=torch.randn(D_MODEL, generator=generator),
        activation=activation or TopK(K),
        apply_b_dec_to_input=True,
        hook_name=f"blocks.{LAYER}.hook_resid_post",
        norm_threshold=norm_threshold,
    )


@pytest.fixture(scope="module")
def sae() -> Sae:
    return make_sae()


@pytest.fixture(scope="module")
def reference(laboratory: Laboratory) -> Reference:
    return reference_of(laboratory, "tiny-llama")


def reference_of(laboratory: Laboratory, model: str) -> Reference:
    return Reference(laboratory.folder(model))


def generate(
    laboratory: Laboratory, sae: Sae | None = None, engine: Engine | None = None, **body: Any
) -> GenerationResult:
    used = None if sae is None else in_use(sae, layer=LAYER, bos=None)
    saes = {} if used is None else {"sae": used.facts}
    served = Catalogue(laboratory.catalogue.home, laboratory.catalogue.models, saes)
    result = Laboratory(engine or laboratory.engine, served).run(PLAIN | body, used)
    assert isinstance(result, GenerationResult)
    return result


def from_first(prompt: PromptTexts, change: Change) -> Change:
    """The change at the positions that are steered."""

    def apply(activation: Tensor) -> Tensor:
        kept = activation[: prompt.first_position]
        return torch.cat([kept, change(activation[prompt.first_position :])]) if len(kept) < len(activation) else kept

    return apply


def greedy(
    reference: Reference, prompt: Sequence[int], changes: Mapping[Place, Change], new: int = NEW
) -> tuple[tuple[int, ...], list[float]]:
    tokens, log_probs = list(prompt), []
    for _ in range(new):
        likely = reference.logits(tokens, changes)[-1].log_softmax(-1)
        tokens.append(int(likely.argmax()))
        log_probs.append(float(likely.max()))
    return tuple(tokens[len(prompt) :]), log_probs


def scored(
    reference: Reference, prompt: Sequence[int], text: Sequence[int], changes: Mapping[Place, Change]
) -> list[float]:
    """Teacher-forced, in one run."""
    log_probs = reference.logits((*prompt, *text), changes).log_softmax(-1)
    return [float(log_probs[len(prompt) - 1 + place, token]) for place, token in enumerate(text)]


def feature_of(sae: Sae, x: Tensor, index: int) -> Tensor:
    """f(x), by hand: [position, 1]."""
    pre: Tensor = (x - sae.b_dec.double()) @ sae.W_enc.double() + sae.b_enc.double()
    match sae.activation:
        case TopK(k):
            kept = pre.topk(k).indices == index
            return torch.where(kept.any(-1), pre[:, index].clamp_min(0), 0.0)[:, None]
        case JumpRelu(threshold=threshold):
            return torch.where(pre[:, index] > threshold[index].double(), pre[:, index], 0.0)[:, None]
        case _:
            return pre[:, index, None].clamp_min(0)


def added(sae: Sae, index: int, amount: float) -> Change:
    return lambda x: x + amount * sae.W_dec[index].double()


def clamped(sae: Sae, index: int, value: float) -> Change:
    return lambda x: x + (value - feature_of(sae, x, index)) * sae.W_dec[index].double()


def projected_out(x: Tensor, direction: Tensor = DIRECTION) -> Tensor:
    unit = direction / direction.norm()
    left: Tensor = x - (x @ unit)[:, None] * unit
    return left


def head_ablated(reference: Reference, head: int) -> Change:
    def ablate(z: Tensor) -> Tensor:
        changed = z.clone()
        changed[:, reference.columns("z", head)] = 0
        return changed

    return ablate


STEERINGS: dict[str, tuple[dict[str, Any], Place, Callable[[Sae, Reference, float], Change]]] = {
    "add a feature": (FEATURE, ("resid_post", LAYER), lambda sae, _, s: added(sae, 7, s)),
    "clamp a feature": (
        FEATURE | {"operation": "clamp", "value": 2.0},
        ("resid_post", LAYER),
        lambda sae, _, s: clamped(sae, 7, 2 * s),
    ),
    "ablate a feature": (
        FEATURE | {"operation": "ablate"},
        ("resid_post", LAYER),
        lambda sae, _, s: clamped(sae, 7, 0.0),
    ),
    "add a direction": (
        ALONG | {"site": "attn_out", "layer": 2, "value": 0.5},
        ("attn_out", 2),
        lambda _, __, s: lambda x: x + s * 0.5 * DIRECTION,
    ),
    "clamp a direction": (
        ALONG | {"operation": "clamp", "value": 2.0},
        ("resid_post", LAYER),
        lambda _, __, s: lambda x: projected_out(x) + s * 2 * DIRECTION / DIRECTION.norm(),
    ),
    "project a feature out": (
        FEATURE | {"operation": "project_out"},
        ("resid_post", LAYER),
        lambda sae, _, s: lambda x: projected_out(x, sae.W_dec[7].double()),
    ),
    "project a direction out": (
        ALONG | {"operation": "project_out"},
        ("resid_post", LAYER),
        lambda _, __, s: projected_out,
    ),
    "ablate a head": (
        {"type": "head", "layer": 1, "head": 2},
        ("z", 1),
        lambda _, reference, s: head_ablated(reference, 2),
    ),
}


@pytest.mark.parametrize("name", STEERINGS)
def test_greedy_texts_and_their_log_probs_are_those_of_a_plain_loop(
    laboratory: Laboratory, reference: Reference, sae: Sae, name: str
) -> None:
    steering, place, change = STEERINGS[name]
    strengths = [3.0, -1.5] if name.startswith(("add", "clamp")) else [1.0]
    uses_sae = steering["type"] == "feature"
    result = generate(laboratory, sae if uses_sae else None, steering=[steering], strengths=strengths)
    told_apart = 0
    for prompt in result.prompts:
        ids = prompt.tokens.ids
        assert prompt.first_position == 1
        plain, log_probs = greedy(reference, ids, {})
        assert prompt.unsteered.tokens == plain
        assert_scores(prompt.unsteered.unsteered, log_probs)
        for text, strength in zip(prompt.steered, strengths, strict=True):
            changes = {place: from_first(prompt, change(sae, reference, strength))}
            expected, log_probs = greedy(reference, ids, changes)
            assert (text.strength, text.tokens) == (strength, expected)
            assert_scores(text.steered, log_probs)
            assert_scores(text.unsteered, scored(reference, ids, expected, {}))
            assert_scores(text.unsteered_text, scored(reference, ids, plain, changes))
            told_apart += text.unsteered_text != prompt.unsteered.unsteered
    assert told_apart, "the steering does something"


def assert_scores(found: TextScore | None, log_probs: Sequence[float]) -> None:
    assert found is not None
    assert found.log_probs == pytest.approx(log_probs, abs=1e-4)
    mean = sum(log_probs) / len(log_probs)
    assert found.mean_log_prob == pytest.approx(mean, abs=1e-4)
    assert found.perplexity == pytest.approx(math.exp(-mean), rel=1e-3)


@pytest.mark.parametrize("activation", [Relu(), JumpRelu(torch.full((FEATURES,), 0.4))], ids=["relu", "jumprelu"])
def test_clamping_goes_by_the_features_of_every_architecture(
    laboratory: Laboratory, reference: Reference, activation: Any
) -> None:
    sae = make_sae(activation)
    result = generate(laboratory, sae, steering=[FEATURE | {"operation": "clamp"}], strengths=[4.0], log_probs=False)
    for prompt in result.prompts:
        changes = {("resid_post", LAYER): from_first(prompt, clamped(sae, 7, 4.0))}
        assert prompt.steered[0].tokens == greedy(reference, prompt.tokens.ids, changes)[0]
        assert prompt.steered[0].unsteered is prompt.steered[0].unsteered_text is None


@pytest.mark.parametrize("from_position", [0, 3, -1, 9])
def test_steering_begins_where_it_is_told_to(laboratory: Laboratory, reference: Reference, from_position: int) -> None:
    result = generate(laboratory, steering=[ALONG], strengths=[2.0], from_position=from_position)
    for prompt in result.prompts:
        length = len(prompt.tokens.ids)
        assert prompt.first_position == (from_position if from_position >= 0 else length + from_position)
        changes = {("resid_post", LAYER): from_first(prompt, lambda x: x + 2 * DIRECTION)}
        tokens, log_probs = greedy(reference, prompt.tokens.ids, changes)
        assert prompt.steered[0].tokens == tokens
        assert_scores(prompt.steered[0].steered, log_probs)


@pytest.mark.parametrize("model", ["tiny-gpt2", "tiny-gemma2"])
def test_unsteered_greedy_texts_are_those_of_transformers_generate(laboratory: Laboratory, model: str) -> None:
    result = generate(laboratory, model=model)
    reference = reference_of(laboratory, model)
    for prompt in result.prompts:
        ids = torch.tensor([list(prompt.tokens.ids)])
        found = reference.model.generate(
            ids,
            max_new_tokens=NEW,
            do_sample=False,
            attention_mask=torch.ones_like(ids),
            eos_token_id=None,
            pad_token_id=0,
        )
        assert prompt.unsteered.tokens == tuple(found[0, ids.shape[1] :].tolist())
        assert prompt.unsteered.finish_reason == "length"
        assert (prompt.steered, prompt.unsteered.steered) == ((), None)


def test_samples_go_by_their_seed_and_not_by_what_else_runs(laboratory: Laboratory) -> None:
    sampling = {"type": "sampled", "seed": 11, "temperature": 1.3, "top_p": 0.95, "top_k": 50}
    body: dict[str, Any] = {"sampling": sampling, "steering": [ALONG], "strengths": [0.5, 2.0]}
    first = generate(laboratory, **body)
    again = generate(laboratory, **body)
    assert [prompt.unsteered.tokens for prompt in first.prompts] == [
        prompt.unsteered.tokens for prompt in again.prompts
    ]
    alone = generate(laboratory, **(body | {"prompts": PROMPTS[1:], "strengths": [2.0]}))
    assert alone.prompts[0].steered[0].tokens == first.prompts[1].steered[1].tokens
    assert alone.prompts[0].unsteered.tokens == first.prompts[1].unsteered.tokens
    other = generate(laboratory, **(body | {"sampling": sampling | {"seed": 12}}))
    assert other.prompts[0].unsteered.tokens != first.prompts[0].unsteered.tokens
    assert first.provenance.seed == 11


def test_all_strengths_of_all_prompts_share_batches(laboratory: Laboratory) -> None:
    with Engine(EngineLimits(threads=1)) as engine:
        before = engine.statistics().batches
        alone = generate(laboratory, engine=engine, prompts=PROMPTS[:1], log_probs=False)
        for_one = engine.statistics().batches - before
        together = generate(
            laboratory,
            engine=engine,
            prompts=PROMPTS[:1] * 3,
            steering=[ALONG],
            strengths=[1.0, 2.0, 3.0],
            log_probs=False,
        )
        for_twelve = engine.statistics().batches - before - for_one
    assert (for_one, for_twelve) == (NEW, NEW)
    assert together.prompts[2].unsteered.tokens == alone.prompts[0].unsteered.tokens


def test_a_stop_token_ends_a_text_and_is_its_last(laboratory: Laboratory) -> None:
    whole = generate(laboratory).prompts[0].unsteered
    stop = whole.tokens[3]
    cut = generate(laboratory, stop=[stop]).prompts[0].unsteered
    assert cut.finish_reason == "stop"
    assert cut.tokens == whole.tokens[: whole.tokens.index(stop) + 1]
    assert cut.text == "".join(cut.strings)


def test_a_text_ends_where_the_model_reads_no_further(laboratory: Laboratory) -> None:
    prompt = {"type": "tokens", "tokens": [5] * 126}
    text = generate(laboratory, prompts=[prompt], steering=[ALONG]).prompts[0].steered[0]
    assert (text.finish_reason, len(text.tokens)) == ("context", 3)
    assert text.unsteered is not None
    assert len(text.unsteered.log_probs) == 3


def test_new_tokens_are_told_of_in_the_order_of_their_text(laboratory: Laboratory, engine: Engine) -> None:
    heard: list[NewTokens] = []
    watched = Laboratory(engine, laboratory.catalogue, on_tokens=heard.append)
    result = watched.run(PLAIN | {"steering": [ALONG], "strengths": [2.0]})
    assert isinstance(result, GenerationResult)
    for number, prompt in enumerate(result.prompts):
        for text, strength in ((prompt.unsteered, None), (prompt.steered[0], 2.0)):
            own = [news for news in heard if (news.prompt, news.strength) == (number, strength)]
            assert [news.first for news in own] == list(range(NEW))
            assert tuple(news.tokens[0] for news in own) == text.tokens
            assert tuple(news.strings[0] for news in own) == text.strings
