"""Continuations against a plain transformers loop that runs the whole text again for every token, in float64."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from services.contracts.errors import ErrorCode, JobFailed
from services.contracts.site import SiteName
from services.engine.decoding import Continuation, Generated, Greedy, Onward, Sampled
from services.engine.engine import Engine, EngineLimits
from services.engine.readout import TokenLogits, TokenLogProbs
from services.engine.row import FromRun, Intervention, Row, Site
from services.engine.ticket import JobCancelled, JobTicket
from services.models.load import LoadedModel
from tests.brute_force import Change, Place, Reference
from tests.families import CONTEXT, D_MODEL, FAMILIES, LAYERS, WINDOW, build_family
from tests.services.engine.conftest import LoadTiny
from tests.services.engine.test_engine import Gate, handing_blocks_something_strange, watching

BY_HAND = ("gpt2", "llama", "mistral", "gemma2", "gpt_neox", "qwen3")
PROMPT = (17, 41, 5, 230, 99, 8, 77)
SOURCE = (18, 40, 5, 61, 98, 9, 78)
NEW = 10
DIRECTION = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def model(load_tiny: LoadTiny) -> LoadedModel:
    return load_tiny("llama", torch.float32)


def steered(strength: float, *, first: int = 2) -> Onward:
    return Onward(Site(SiteName.RESID_POST, 1), first, "add", strength * DIRECTION)


def plain_greedy(
    reference: Reference, prompt: Sequence[int], changes: Mapping[Place, Change]
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """New tokens and their log probabilities."""
    tokens, log_probs = list(prompt), []
    for _ in range(NEW):
        next_log_probs = reference.logits(tokens, changes)[-1].log_softmax(-1)
        tokens.append(int(next_log_probs.argmax()))
        log_probs.append(float(next_log_probs.max()))
    return tuple(tokens[len(prompt) :]), tuple(log_probs)


def assert_same(found: Sequence[Generated], expected: Sequence[Generated]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one.tokens, one.stopped) == (other.tokens, other.stopped)
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-4)


def test_a_steered_text_whose_step_shares_a_batch_with_a_prompt_goes_on_as_it_would_alone(
    engine: Engine, model: LoadedModel
) -> None:
    steered_text, prompt = Continuation(PROMPT, NEW, (steered(3.0),)), Continuation(SOURCE[:2], 1)
    (alone,) = engine.generate(model, [steered_text], job=JobTicket("alone", "owner"))
    others: list[Any] = []

    def ask(_index: int, _token: int, _log_prob: float) -> None:
        others.extend(engine.submit_continuations(model, [prompt], job=JobTicket("other", "owner")))

    (future,) = engine.submit_continuations(model, [steered_text], job=JobTicket("job", "owner"), on_token=ask)
    assert_same([future.result(60)], [alone])
    assert len([other.result(60) for other in others]) == NEW


@pytest.mark.parametrize("family", BY_HAND)
def test_greedy_text_is_that_of_a_plain_loop_with_the_same_changes(
    load_tiny: LoadTiny, engine: Engine, tmp_path: Path, family: str
) -> None:
    model, reference = load_tiny(family, torch.float32), Reference(build_family(family, tmp_path))
    assert len(PROMPT) > WINDOW
    interventions = (
        Intervention(Site(SiteName.RESID_PRE, 1), (1, 4), "set", FromRun(SOURCE)),
        Intervention(Site(SiteName.Z, 0, head=1), None, "set", 0.0),
        Intervention(Site(SiteName.MLP_OUT, 2), (3, len(PROMPT) + 1), "scale", 2.5),
        steered(0.7),
    )
    donor = reference.activations(SOURCE, [("resid_pre", 1)])["resid_pre", 1]

    def patch(activation: Tensor) -> Tensor:
        changed = activation.clone()
        changed[[1, 4]] = donor[[1, 4]]
        return changed

    def ablate(activation: Tensor) -> Tensor:
        changed = activation.clone()
        changed[:, reference.d_head : 2 * reference.d_head] = 0
        return changed

    def scale(activation: Tensor) -> Tensor:
        changed = activation.clone()
        changed[[position for position in (3, len(PROMPT) + 1) if position < len(changed)]] *= 2.5
        return changed

    def steer(activation: Tensor) -> Tensor:
        changed = activation.clone()
        changed[2:] += 0.7 * DIRECTION.double()
        return changed

    changes = {("resid_pre", 1): patch, ("z", 0): ablate, ("mlp_out", 2): scale, ("resid_post", 1): steer}
    continuations = [Continuation(PROMPT, NEW, given) for given in ((), interventions)]
    plain, changed = engine.generate(model, continuations, job=JobTicket("job", "a"))
    for found, given in ((plain, {}), (changed, changes)):
        tokens, log_probs = plain_greedy(reference, PROMPT, given)
        assert found.tokens == tokens
        assert found.log_probs == pytest.approx(log_probs, abs=1e-4)
        assert (found.stopped, found.execution) == ("max_new_tokens", "branched")
    assert plain.log_probs != changed.log_probs


@pytest.mark.parametrize("family", FAMILIES)
def test_every_step_of_every_family_reads_what_a_row_with_the_same_changes_reads(
    load_tiny: LoadTiny, engine: Engine, family: str
) -> None:
    model = load_tiny(family, torch.float32)
    sites = [
        Site(facts.name, None if facts.name is SiteName.EMBED else 1) for facts in model.facts.sites if facts.writable
    ]
    changes = [(Intervention(site, None, "scale", 1.5),) for site in sites]
    seen: list[int] = []
    with watching(model, lambda tokens: seen.append(tokens.shape[1])):
        texts = engine.generate(
            model, [Continuation(PROMPT[:6], 5, change) for change in changes], job=JobTicket("a", "a")
        )
    assert seen[-1] == 1
    rows = [
        Row((*PROMPT[:6], *text.tokens[:step]), change, readout=TokenLogProbs(5 + step, (token,)))
        for text, change in zip(texts, changes, strict=True)
        for step, token in enumerate(text.tokens)
    ]
    expected = [float(outcome.values()) for outcome in engine.run(model, rows, job=JobTicket("b", "a"))]
    assert [log_prob for text in texts for log_prob in text.log_probs] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_texts_of_all_lengths_and_strengths_read_together_what_they_read_alone(
    load_tiny: LoadTiny, family: str
) -> None:
    model = load_tiny(family, torch.float32)
    continuations = [
        Continuation(PROMPT[: 1 + index % 7], 3 + index, (steered(index / 4, first=index),)) for index in range(10)
    ]
    with Engine(EngineLimits(threads=1)) as engine:
        alone = [engine.generate(model, [each], job=JobTicket("alone", "a"))[0] for each in continuations]
        single_batches = engine.statistics().batches
    with Engine(EngineLimits(threads=1)) as engine:
        jobs = [JobTicket(str(index), "a") for index in range(10)]
        futures = [
            engine.submit_continuations(model, [each], job=job) for each, job in zip(continuations, jobs, strict=True)
        ]
        assert_same([future.result(60) for (future,) in futures], alone)
        assert engine.statistics().batches < single_batches / 2


def test_a_step_runs_one_position_of_every_text(model: LoadedModel) -> None:
    seen: list[tuple[int, ...]] = []
    with Engine(EngineLimits(threads=1)) as engine:
        engine.generate(model, [Continuation(PROMPT, 2)], job=JobTicket("warm", "a"))
        with watching(model, lambda tokens: seen.append(tuple(tokens.shape))):
            engine.generate(model, [Continuation(PROMPT, 4)] * 3, job=JobTicket("job", "a"))
    assert seen == [(3, len(PROMPT)), (3, 1), (3, 1), (3, 1)]


def test_texts_without_room_for_their_keys_and_values_read_the_same(model: LoadedModel) -> None:
    continuations = [Continuation(PROMPT[:length], NEW, (steered(1.0),)) for length in (3, 5, 7)]
    with Engine(EngineLimits(threads=1)) as engine:
        expected = engine.generate(model, continuations, job=JobTicket("job", "a"))
    seen: list[int] = []
    room_for_one = 3 * 2 * 2 * 12 * 16 * 4  # layers, keys and values, KV heads, d_head, positions, bytes
    with Engine(EngineLimits(threads=1, past_bytes=room_for_one)) as engine:
        engine.generate(model, continuations[:1], job=JobTicket("warm", "a"))
        with watching(model, lambda tokens: seen.append(tokens.shape[1])):
            assert_same(engine.generate(model, continuations, job=JobTicket("job", "a")), expected)
    assert seen.count(1) == len(continuations) * (NEW - 1) - 2  # two texts wait, after a prompt run in vain


def test_a_model_that_only_runs_whole_passes_generates_the_same_and_says_so(load_tiny: LoadTiny) -> None:
    model = load_tiny("mistral", torch.float32)
    knockout = Intervention(Site(SiteName.PATTERN, 1, head=2), None, "set", 0.0)
    continuations = [Continuation(PROMPT[:length], 5, (steered(0.5), knockout)) for length in (4, 7)]
    with Engine(EngineLimits(threads=1)) as engine:
        expected = engine.generate(model, continuations, job=JobTicket("job", "a"))
    with handing_blocks_something_strange(model), Engine(EngineLimits(threads=1)) as engine:
        found = engine.generate(model, continuations, job=JobTicket("job", "a"))
    assert_same(found, expected)
    assert {each.execution for each in expected} == {"branched"}
    assert {each.execution for each in found} == {"whole"}


def test_a_seed_gives_the_same_text_whatever_else_is_in_the_batch(model: LoadedModel, engine: Engine) -> None:
    def sampled(seed: int) -> Continuation:
        return Continuation(PROMPT, NEW, sampling=Sampled(seed, temperature=1.3, top_k=50, top_p=0.9))

    job = JobTicket("job", "a")
    (alone,) = engine.generate(model, [sampled(4)], job=job)
    others = [Continuation(SOURCE[:3], 6), Continuation(PROMPT, NEW), *map(sampled, range(4))]
    *_, again = engine.generate(model, [*others, sampled(4)], job=job)
    assert_same([again], [alone])
    assert len({text.tokens for text in engine.generate(model, list(map(sampled, range(5))), job=job)}) == 5


def test_a_narrow_draw_is_the_greedy_one(model: LoadedModel, engine: Engine) -> None:
    ways = (
        Greedy(),
        Sampled(1, top_k=1),
        Sampled(2, top_p=1e-9),
        Sampled(3, temperature=1e-4),
        Sampled(4, temperature=1e-320),
    )
    first, *others = engine.generate(
        model, [Continuation(PROMPT, NEW, sampling=way) for way in ways], job=JobTicket("job", "a")
    )
    assert_same(others, [first] * 4)


def test_a_stop_token_ends_the_text_and_is_its_last(model: LoadedModel, engine: Engine) -> None:
    job = JobTicket("job", "a")
    (whole,) = engine.generate(model, [Continuation(PROMPT, NEW)], job=job)
    stop = whole.tokens[4]
    length = whole.tokens.index(stop) + 1
    (stopped,) = engine.generate(model, [Continuation(PROMPT, NEW, stop=frozenset({stop}))], job=job)
    assert stopped == Generated(whole.tokens[:length], whole.log_probs[:length], "stop_token", "branched")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_text_that_fills_the_context_stops_there(load_tiny: LoadTiny, engine: Engine, family: str) -> None:
    prompt = tuple(5 + index % 200 for index in range(CONTEXT - 2))
    short = Continuation(PROMPT[:2], 6)
    full, other = engine.generate(
        load_tiny(family, torch.float32), [Continuation(prompt, NEW), short], job=JobTicket("job", "a")
    )
    assert (len(full.tokens), full.stopped) == (3, "context")
    assert (len(other.tokens), other.stopped) == (6, "max_new_tokens")


def test_cancelling_takes_effect_before_the_next_token(model: LoadedModel) -> None:
    heard: list[int] = []
    with Engine(EngineLimits(threads=1)) as engine:
        job = JobTicket("job", "a", cancelled=lambda: len(heard) >= 3)
        other = engine.submit_continuations(model, [Continuation(PROMPT, 40)], job=JobTicket("other", "a"))
        (future,) = engine.submit_continuations(
            model, [Continuation(PROMPT, 40)], job=job, on_token=lambda _index, token, _log_prob: heard.append(token)
        )
        with pytest.raises(JobCancelled):
            future.result(30)
        assert len(other[0].result(30).tokens) == 40
        assert len(heard) == 3
        assert engine.statistics().waiting_rows == 0


def test_closing_gives_up_a_text_under_way(model: LoadedModel) -> None:
    gate = Gate()
    engine = Engine(EngineLimits(threads=1))
    engine.warm_up(model)
    with watching(model, gate):
        (future,) = engine.submit_continuations(model, [Continuation(PROMPT, 100)], job=JobTicket("job", "a"))
        assert gate.reached.wait(10)
        gate.open.set()
        engine.close()
    assert isinstance(future.exception(0), JobCancelled)


def test_a_row_submitted_during_a_long_text_is_read_within_a_few_steps(model: LoadedModel) -> None:
    gate, heard = Gate(), []
    with Engine(EngineLimits(threads=1)) as engine:
        engine.warm_up(model)
        with watching(model, gate):
            texts = engine.submit_continuations(
                model,
                [Continuation(PROMPT, 80)] * 2,
                job=JobTicket("long", "a"),
                on_token=lambda *told: heard.append(told),
            )
            assert gate.reached.wait(10)
            (small,) = engine.submit(model, [Row(SOURCE, readout=TokenLogits(6, (1,)))], job=JobTicket("small", "b"))
            small.add_done_callback(lambda _: heard.append((-1, 0, 0.0)))
            gate.open.set()
            assert [len(text.result(60).tokens) for text in texts] == [80, 80]
    assert heard.index((-1, 0, 0.0)) <= 4


def test_a_text_whose_logits_blow_up_fails_alone(model: LoadedModel, engine: Engine) -> None:
    site = Site(SiteName.RESID_POST, 2)
    onward = (Onward(site, 8, "set", 3e38), Onward(site, 8, "scale", 10.0))
    wild = Continuation(PROMPT, 5, onward, sampling=Sampled(0, top_p=0.5))
    bad, good = engine.submit_continuations(model, [wild, Continuation(PROMPT, 5)], job=JobTicket("job", "a"))
    with pytest.raises(JobFailed, match="not numbers after 2 new tokens") as failure:
        bad.result(30)
    assert failure.value.code is ErrorCode.METHOD_FAILED
    assert len(good.result(30).tokens) == 5


def test_every_new_token_is_told_counts_as_progress_and_is_paid_for(model: LoadedModel, engine: Engine) -> None:
    told: list[tuple[int, int]] = []
    heard: list[tuple[int, int, float]] = []
    ticket = JobTicket("job", "a", on_progress=lambda done, planned: told.append((done, planned)))
    (whole,) = engine.generate(model, [Continuation(PROMPT, 6)], job=JobTicket("before", "a"))
    continuation = Continuation(PROMPT, 20, stop=frozenset({whole.tokens[3]}))
    (future,) = engine.submit_continuations(
        model, [continuation], job=ticket, on_token=lambda *token: heard.append(token)
    )
    found = future.result(30)
    assert heard == [(0, *each) for each in zip(found.tokens, found.log_probs, strict=True)]
    assert told[0] == (0, 20)
    assert ticket.token_layers == (len(PROMPT) + len(found.tokens) - 1) * LAYERS
    assert ticket.engine_seconds > 0
    assert (20, 20) in told
