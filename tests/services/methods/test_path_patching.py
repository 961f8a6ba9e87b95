"""Path patching against the paper's two passes, written by hand on plain transformers in float64."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from services.catalogue.catalogue import open_catalogue
from services.catalogue.resolve import Limits, resolve
from services.contracts.errors import ErrorCode, InvalidSpec
from services.contracts.node import Reader, Writer
from services.contracts.patching import PatchingResult
from services.contracts.tensor import InlineTensor, Statistic
from services.engine.engine import Engine
from tests.brute_force import Change, Place, Reference
from tests.families import HEADS, LAYERS
from tests.prepared import prepare_family
from tests.services.methods.conftest import FAMILIES, SPEC, Laboratory
from tests.services.methods.test_activation_patching import OTHER_PAIR, PAIR
from tests.services.methods.test_activation_patching import job as activation_patching

TOLERANCE = 2e-5
FINE = 5e-6
"""For paths by way of single heads, whose effects are of the order of 0.001."""
KV_HEADS = {"gpt2": 4, "llama": 2, "gpt_neox": 4, "gemma2": 2}


def job(family: str, receivers: Sequence[str], **changes: Any) -> dict[str, Any]:
    method = {"type": "path_patching", "receivers": list(receivers), **changes.pop("method", {})}
    return {
        "kind": "patching",
        "model": family if family.startswith("smollm2") else f"tiny-{family.replace('_', '-')}",
        "method": method,
        "pairs": [PAIR],
        **changes,
    }


def run(laboratory: Laboratory, body: dict[str, Any]) -> PatchingResult:
    result = laboratory.run(body)
    assert isinstance(result, PatchingResult)
    return result


def array(estimate: Any, dims: tuple[str, ...]) -> Any:
    assert isinstance(estimate, InlineTensor)
    assert estimate.dims == dims
    return estimate.array()


class Bench:
    """The two passes by hand: every other head's z is kept in every layer, MLPs run unless they are kept too."""

    def __init__(self, laboratory: Laboratory, body: dict[str, Any], result: PatchingResult) -> None:
        self.reference = Reference(laboratory.folder(body["model"]))
        tokenizer = laboratory.catalogue.tokenizer(body["model"])
        self._mary, self._john = (tokenizer.read(text, bos=False).ids[0] for text in (" Mary", " John"))
        pair = result.pairs[0].tokens
        self.target, self.source = pair.corrupted.ids, pair.clean.ids
        if result.mode == "noising":
            self.target, self.source = self.source, self.target
        self._layers = range(len(self.reference.blocks))
        places = [(site, layer) for layer in self._layers for site in ("resid_pre", "z", "mlp_out")]
        self._kept = self.reference.activations(self.target, places)
        self._sent = self.reference.activations(self.source, places)
        self.unpatched = self.metric(self.reference.logits(self.target))

    def metric(self, logits: Tensor) -> float:
        return float(logits[-1, self._mary] - logits[-1, self._john])

    def effect(
        self,
        sender: str,
        receivers: Sequence[str],
        *,
        position: int | None = None,
        receiver_positions: Sequence[int] | None = None,
        freeze_mlps: bool = False,
    ) -> float:
        rows = slice(None) if position is None else [position]
        at = slice(None) if receiver_positions is None else list(receiver_positions)
        changes = self._sending(Writer.parse(sender), rows, freeze_mlps)
        if list(receivers) == ["logits"]:
            return self.metric(self.reference.logits(self.target, changes)) - self.unpatched
        seen: dict[Place, Tensor] = {}
        readers = [self._place(Reader.parse(name)) for name in receivers]
        for place, _ in readers:
            changes[place] = _keeping(seen, place)
        self.reference.logits(self.target, changes)
        received: dict[Place, list[slice]] = {}
        for place, columns in readers:
            received.setdefault(place, []).append(columns)
        patches = {place: _written(seen[place], at, columns) for place, columns in received.items()}
        return self.metric(self.reference.logits(self.target, patches)) - self.unpatched

    def _sending(self, sender: Writer, rows: Any, freeze_mlps: bool) -> dict[Place, Change]:
        changes: dict[Place, Change] = {}
        for layer in self._layers:
            new = self._kept["z", layer].clone()
            if sender.kind == "head" and sender.layer == layer:
                columns = self.reference.columns("z", sender.head or 0)
                new[rows, columns] = self._sent["z", layer][rows, columns]
            changes["z", layer] = _set(new)
            if freeze_mlps:
                changes["mlp_out", layer] = _set(self._kept["mlp_out", layer])
        if sender.kind != "head":
            place = ("resid_pre", 0) if sender.kind == "input" else ("mlp_out", sender.layer or 0)
            new = self._kept[place].clone()
            new[rows] = self._sent[place][rows]
            changes[place] = _set(new)
        return changes

    def _place(self, reader: Reader) -> tuple[Place, slice]:
        if reader.via is None:
            return ("mlp_in", reader.layer or 0), slice(None)
        return (reader.via, reader.layer or 0), self.reference.columns(reader.via, reader.head or 0)


def _set(value: Tensor) -> Change:
    return lambda _: value


def _keeping(seen: dict[Place, Tensor], place: Place) -> Change:
    def keep(activation: Tensor) -> Tensor:
        seen[place] = activation.clone()
        return activation

    return keep


def _written(value: Tensor, rows: Any, several: Sequence[slice]) -> Change:
    def write(activation: Tensor) -> Tensor:
        changed = activation.clone()
        for columns in several:
            changed[rows, columns] = value[rows, columns]
        return changed

    return write


@pytest.mark.parametrize("mode", ["denoising", "noising"])
@pytest.mark.parametrize("freeze_mlps", [False, True], ids=["MLPs recomputed", "MLPs frozen"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_sender_to_the_logits_equals_a_pass_with_all_other_heads_kept(
    laboratory: Laboratory, family: str, freeze_mlps: bool, mode: str
) -> None:
    body = job(family, ["logits"], method={"mode": mode, "freeze_mlps": freeze_mlps})
    result = run(laboratory, body)
    parts = [[*(f"a{layer}.h{head}" for head in range(HEADS)), f"m{layer}"] for layer in range(LAYERS)]
    assert result.senders == tuple(name for own in parts for name in own)
    assert (result.method, result.receivers, result.site) == ("path_patching", ("logits",), None)
    bench = Bench(laboratory, body, result)
    expected = [bench.effect(sender, ["logits"], freeze_mlps=freeze_mlps) for sender in result.senders]
    assert np.abs(expected).max() > 200 * TOLERANCE, "the reference itself must see an effect"
    np.testing.assert_allclose(array(result.effects, ("sender",)), expected, atol=TOLERANCE)
    baselines = result.pairs[0].baselines
    target, source = baselines.corrupted, baselines.clean
    if mode == "noising":
        target, source = source, target
    np.testing.assert_allclose(
        array(result.normalized, ("sender",)), np.array(expected) / (source - target), atol=1e-3, rtol=1e-3
    )


@pytest.mark.parametrize("freeze_mlps", [False, True], ids=["MLPs recomputed", "MLPs frozen"])
@pytest.mark.parametrize("family", FAMILIES)
def test_paths_to_heads_and_mlps_equal_the_two_passes(laboratory: Laboratory, family: str, freeze_mlps: bool) -> None:
    last = KV_HEADS[family] - 1
    sets: list[list[str]] = [
        [f"a{layer}.h{head}<q>" for layer in (1, 2) for head in range(HEADS)],
        [f"a2.h{last}<v>", "a1.h0<k>"],
        ["m2"],
        ["m1", "m2", "a2.h1<q>", "a2.h2<q>", f"a2.h{last}<k>"],
    ]
    for receivers in sets:
        body = job(family, receivers, method={"freeze_mlps": freeze_mlps})
        result = run(laboratory, body)
        assert result.senders is not None
        assert "a2.h0" not in result.senders or ("m2" in receivers and family != "gpt_neox")
        bench = Bench(laboratory, body, result)
        expected = [bench.effect(sender, receivers, freeze_mlps=freeze_mlps) for sender in result.senders]
        assert np.abs(expected).max() > 50 * FINE, "the reference itself must see an effect"
        np.testing.assert_allclose(array(result.effects, ("sender",)), expected, atol=FINE)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_named_senders_go_by_position_and_receivers_stay_at_theirs(laboratory: Laboratory, family: str) -> None:
    senders, receivers = ["a1.h2", "input", "m0", "a0.h3"], ["a2.h1<q>", "a2.h0<v>", "m1"]
    body = job(
        family,
        receivers,
        pairs=[PAIR | {"positions": {"S2": -5}}],
        method={"senders": senders, "positions": ["S2", -1, 0], "receiver_positions": [-1, "S2"]},
    )
    result = run(laboratory, body)
    assert result.senders == tuple(senders)
    assert result.positions == ("S2", -1, 0)
    bench = Bench(laboratory, body, result)
    length = len(bench.target)
    expected = [
        [
            bench.effect(sender, receivers, position=at, receiver_positions=[length - 1, length - 5])
            for at in (length - 5, length - 1, 0)
        ]
        for sender in senders
    ]
    assert np.abs(expected).max() > 50 * TOLERANCE, "the reference itself must see an effect"
    np.testing.assert_allclose(array(result.effects, ("sender", "position")), expected, atol=TOLERANCE)


def test_the_embedding_goes_to_the_logits_past_all_heads(laboratory: Laboratory) -> None:
    body = job("llama", ["logits"], method={"senders": ["input"]}, metric={"type": "cross_entropy"})
    result = run(laboratory, body)
    bench = Bench(laboratory, body, result)
    (found,) = array(result.effects, ("sender",))
    logits = bench.reference.logits(bench.target, bench._sending(Writer("input"), slice(None), freeze_mlps=False))
    targets = torch.tensor(bench.source[1:])

    def loss(of: Tensor) -> float:
        return float(torch.nn.functional.cross_entropy(of[:-1], targets))

    assert found == pytest.approx(loss(logits) - loss(bench.reference.logits(bench.target)), abs=TOLERANCE)


def test_a_head_of_the_last_layer_has_no_path_but_the_direct_one(laboratory: Laboratory) -> None:
    """So path patching to the logits is activation patching there, and not in the layers before."""
    for family in FAMILIES:
        patched = laboratory.run(activation_patching(family, "z"))
        assert isinstance(patched, PatchingResult)
        every = array(patched.effects, ("layer", "head"))
        paths = array(run(laboratory, job(family, ["logits"])).effects, ("sender",)).reshape(LAYERS, HEADS + 1)
        np.testing.assert_allclose(paths[-1, :HEADS], every[-1], atol=TOLERANCE)
        assert np.abs(paths[0, :HEADS] - every[0]).max() > 100 * TOLERANCE


def test_what_the_input_sends_to_the_first_layers_heads_is_all_that_they_read(laboratory: Laboratory) -> None:
    """Patching all their q, k and v is patching their z."""
    receivers = [f"a0.h{head}<{via}>" for via, heads in (("q", 4), ("k", 2), ("v", 2)) for head in range(heads)]
    (found,) = array(run(laboratory, job("llama", receivers, method={"senders": ["input"]})).effects, ("sender",))
    bench_job = job("llama", ["logits"])
    bench = Bench(laboratory, bench_job, run(laboratory, bench_job))
    logits = bench.reference.logits(bench.target, {("z", 0): _set(bench._sent["z", 0])})
    assert found == pytest.approx(bench.metric(logits) - bench.unpatched, abs=TOLERANCE)


def test_a_model_of_attention_alone_has_paths_between_heads_only(
    engine: Engine, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.mktemp("home")
    prepare_family("native_attention", tmp_path_factory.mktemp("source"), home)
    alone = Laboratory(engine, open_catalogue(home))
    facts = alone.catalogue.model("tiny-native-attention")
    heads = tuple(f"a{layer}.h{head}" for layer in range(facts.layers) for head in range(facts.heads))
    plain = run(alone, job("native_attention", ["logits"]))
    frozen = run(alone, job("native_attention", ["logits"], method={"freeze_mlps": True}))
    assert plain.senders == frozen.senders == heads
    effects = array(plain.effects, ("sender",))
    np.testing.assert_allclose(array(frozen.effects, ("sender",)), effects, atol=TOLERANCE)
    patched = run(alone, activation_patching("native_attention", "z"))
    last = array(patched.effects, ("layer", "head"))[-1]
    np.testing.assert_allclose(effects[-facts.heads :], last, atol=TOLERANCE)
    composed = run(alone, job("native_attention", [f"a{facts.layers - 1}.h0<k>"]))
    assert composed.senders == heads[: -facts.heads]
    assert np.abs(array(composed.effects, ("sender",))).max() > 100 * TOLERANCE


def test_many_pairs_of_different_lengths_give_means_with_standard_errors(laboratory: Laboratory) -> None:
    pairs = [PAIR, OTHER_PAIR, PAIR | {"foil": " is"}]
    result = run(laboratory, job("llama", ["a2.h1<q>", "m2"], pairs=pairs, per_pair=True))
    own = np.stack([array(pair.effects, ("sender",)) for pair in result.pairs])
    assert np.abs(own).min(axis=1).max() > 0
    assert isinstance(result.effects, Statistic)
    assert result.effects.count == 3
    np.testing.assert_allclose(array(result.effects.mean, ("sender",)), own.mean(0), atol=1e-6)
    np.testing.assert_allclose(
        array(result.effects.standard_error, ("sender",)), own.std(0, ddof=1) / 3**0.5, atol=1e-6
    )
    for index, pair in enumerate(pairs):
        alone = run(laboratory, job("llama", ["a2.h1<q>", "m2"], pairs=[pair]))
        np.testing.assert_allclose(own[index], array(alone.effects, ("sender",)), atol=TOLERANCE)


def test_paths_of_smollm2_equal_the_two_passes(smollm2: Laboratory) -> None:
    senders, receivers = ["a20.h0", "m20"], ["a23.h3<q>", "a24.h1<v>", "a24.h2<k>", "m25"]
    body = job("smollm2-135m", receivers, method={"senders": senders})
    result = run(smollm2, body)
    bench = Bench(smollm2, body, result)
    expected = [bench.effect(sender, receivers) for sender in senders]
    assert np.abs(expected).max() > 0.1, "the reference itself must see an effect"
    np.testing.assert_allclose(array(result.effects, ("sender",)), expected, atol=1e-3)
    direct = run(smollm2, job("smollm2-135m", ["logits"], method={"senders": senders, "freeze_mlps": True}))
    expected = [bench.effect(sender, ["logits"], freeze_mlps=True) for sender in senders]
    np.testing.assert_allclose(array(direct.effects, ("sender",)), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("family", "method", "refusal"),
    [
        ("llama", {"receivers": ["a2.h0"]}, ("/receivers/0", ErrorCode.INVALID_REQUEST, "say which, as a2.h0<q>")),
        ("llama", {"receivers": ["m1", "input"]}, ("/receivers/1", ErrorCode.INVALID_REQUEST, "called a10.h0<q>, m3")),
        ("llama", {"receivers": ["a3.h0<q>"]}, ("/receivers/0", ErrorCode.UNKNOWN_LAYER, "has layers 0..2")),
        ("llama", {"receivers": ["a2.h2<k>"]}, ("/receivers/0", ErrorCode.UNKNOWN_HEAD, "has KV heads 0..1")),
        ("llama", {"receivers": ["m2", "m2"]}, ("/receivers/1", ErrorCode.INVALID_REQUEST, "named twice")),
        ("llama", {"receivers": ["m2", "logits"]}, ("/receivers", ErrorCode.INVALID_REQUEST, "in a job alone")),
        (
            "llama",
            {"receivers": ["logits"], "receiver_positions": [-1]},
            ("/receiver_positions", ErrorCode.INVALID_REQUEST, "where the metric is"),
        ),
        ("llama", {"receivers": ["m2"], "senders": ["a0.h4"]}, ("/senders/0", ErrorCode.UNKNOWN_HEAD, "heads 0..3")),
        ("llama", {"receivers": ["m2"], "senders": ["a0.h1<q>"]}, ("/senders/0", ErrorCode.INVALID_REQUEST, "writes")),
        (
            "llama",
            {"receivers": ["a1.h0<q>", "m1"], "senders": ["a1.h0", "m1"]},
            ("/senders/1", ErrorCode.INVALID_REQUEST, "m1 comes before none of the receivers"),
        ),
        (
            "gpt_neox",
            {"receivers": ["a1.h0<q>", "m1"], "senders": ["a0.h0", "a1.h0"]},
            ("/senders/1", ErrorCode.INVALID_REQUEST, "a1.h0 comes before none"),
        ),
        ("llama", {"receivers": ["a0.h0<q>"]}, ("/senders", ErrorCode.INVALID_REQUEST, "send `input`")),
        ("llama", {"receivers": ["m2"], "positions": ["S2"]}, ("/positions/0", ErrorCode.UNKNOWN_POSITION, "'S2'")),
        (
            "llama",
            {"receivers": ["m2"], "receiver_positions": [-1, 40]},
            ("/receiver_positions/1", ErrorCode.UNKNOWN_POSITION, "position 40 does not exist"),
        ),
    ],
)
def test_what_is_no_path_is_refused_where_it_stands(
    laboratory: Laboratory, family: str, method: dict[str, Any], refusal: tuple[str, ErrorCode, str]
) -> None:
    pointer, code, message = refusal
    with pytest.raises(InvalidSpec) as error:
        resolve(SPEC.validate_json(json.dumps(job(family, (), method=method))), laboratory.catalogue, Limits())
    (violation,) = error.value.violations
    assert violation.pointer == f"/method{pointer}"
    assert violation.code is code
    assert message in violation.message
