"""TransformerLens' own architecture as a source: against the same transformer written out in float64."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from services.catalogue.catalogue import model_folder
from services.catalogue.operator import CatalogueError
from services.contracts.errors import JobFailed
from services.contracts.model import ModelFacts
from services.contracts.site import SiteName
from services.engine.check import InvalidRow
from services.engine.decoding import Continuation
from services.engine.engine import Engine, EngineLimits
from services.engine.readout import TokenLogits
from services.engine.row import Capture, Intervention, Row, Site
from services.engine.ticket import JobTicket
from services.models.load import LoadedModel, load_model
from services.models.native import NativeConfig
from services.models.prepare import prepare_model
from tests.families import NATIVES
from tests.prepared import prepare_family, tiny_entry

TOKENS = (0, 41, 5, 230, 99, 8, 41, 5)
MLP_SITES = (SiteName.RESID_MID, SiteName.MLP_OUT, SiteName.MLP_POST)


def load(home: Path, facts: ModelFacts) -> LoadedModel:
    return load_model(model_folder(home, facts.id), facts, device=torch.device("cpu"), dtype=torch.float32)


class WrittenOut:
    """The forward pass from the weights file alone; attention's patterns are kept by layer."""

    def __init__(self, weights: Path, config: NativeConfig) -> None:
        self.weights = {name: tensor.double() for name, tensor in load_file(weights).items()}
        self.config = config
        self.patterns: list[Tensor] = []

    def logits(self, tokens: tuple[int, ...]) -> Tensor:
        stream = self.weights["tok_embed.weight"][list(tokens)]
        if self.config.positional_embedding_type == "standard":
            stream = stream + self.weights["pos.weight"][: len(tokens)]
        for layer in range(self.config.n_layers):
            block = f"layers.{layer}"
            stream = stream + self.attention(f"{block}.attn", self.norm(f"{block}.ln1", stream))
            if not self.config.attn_only:
                hidden = self.linear(f"{block}.mlp.fc_in", self.norm(f"{block}.ln2", stream))
                stream = stream + self.linear(f"{block}.mlp.fc_out", tanh_gelu(hidden))
        return self.norm("ln_out", stream) @ self.weights["head.weight"].T

    def attention(self, name: str, normed: Tensor) -> Tensor:
        heads, d_head, length = self.config.n_heads, self.config.d_head, len(normed)
        q, k, v = (
            self.linear(f"{name}.{letter}", normed).reshape(length, heads, d_head).transpose(0, 1) for letter in "qkv"
        )
        if self.config.positional_embedding_type == "rotary":
            q, k = rotated(q), rotated(k)
        scores = q @ k.transpose(1, 2) / d_head**0.5
        later = torch.ones(length, length).triu(1).bool()
        pattern = scores.masked_fill(later, -torch.inf).softmax(-1)
        self.patterns.append(pattern)
        return self.linear(f"{name}.o", (pattern @ v).transpose(0, 1).reshape(length, -1))

    def norm(self, name: str, stream: Tensor) -> Tensor:
        if self.config.normalization_type == "RMS":
            return stream / (stream.square().mean(-1, keepdim=True) + 1e-5).sqrt() * self.weights[f"{name}.weight"]
        centred = stream - stream.mean(-1, keepdim=True)
        unit = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return unit * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def linear(self, name: str, given: Tensor) -> Tensor:
        return given @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]


def tanh_gelu(given: Tensor) -> Tensor:
    return 0.5 * given * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (given + 0.044715 * given**3)))


def rotated(vectors: Tensor) -> Tensor:
    """Neighbouring coordinates as complex numbers, turned by position times 10000^(−2i / d_head)."""
    _, length, width = vectors.shape
    frequencies = 10_000.0 ** -(torch.arange(0, width, 2).double() / width)
    angles = torch.outer(torch.arange(length).double(), frequencies)
    pairs = torch.view_as_complex(vectors.reshape(*vectors.shape[:2], -1, 2).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).reshape(vectors.shape)


@pytest.fixture(scope="module", params=NATIVES)
def served(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ModelFacts, NativeConfig]:
    home = tmp_path_factory.mktemp("home")
    facts = prepare_family(request.param, tmp_path_factory.mktemp("sources"), home)
    return home, facts, NATIVES[request.param]


def test_logits_and_patterns_are_those_of_the_transformer_written_out(
    served: tuple[Path, ModelFacts, NativeConfig],
) -> None:
    home, facts, config = served
    reference = WrittenOut(model_folder(home, facts.id) / "model.safetensors", config)
    expected = reference.logits(TOKENS)
    patterns = tuple(Capture(Site(SiteName.PATTERN, layer)) for layer in range(config.n_layers))
    with Engine(EngineLimits(threads=1)) as engine:
        rows = [Row(TOKENS, readout=TokenLogits(position, None)) for position in range(len(TOKENS))]
        rows.append(Row(TOKENS, captures=patterns))
        *outcomes, shown = engine.run(load(home, facts), rows, job=JobTicket("job", "owner"))
    for position, outcome in enumerate(outcomes):
        assert outcome.execution == "whole"
        torch.testing.assert_close(outcome.values(), expected[position].float(), rtol=0, atol=1e-4)
    for capture, pattern in zip(patterns, reference.patterns, strict=True):
        torch.testing.assert_close(shown.captures[capture], pattern.transpose(0, 1).float(), rtol=0, atol=1e-5)


def test_greedy_text_is_that_of_the_transformer_written_out(served: tuple[Path, ModelFacts, NativeConfig]) -> None:
    home, facts, config = served
    reference = WrittenOut(model_folder(home, facts.id) / "model.safetensors", config)
    tokens: tuple[int, ...] = TOKENS
    while len(tokens) < len(TOKENS) + 6:
        tokens = (*tokens, int(reference.logits(tokens)[-1].argmax()))
    with Engine(EngineLimits(threads=1)) as engine:
        (text,) = engine.generate(load(home, facts), [Continuation(TOKENS, 6)], job=JobTicket("job", "owner"))
    assert (text.tokens, text.execution) == (tokens[len(TOKENS) :], "whole")


def test_the_facts_are_the_configs(served: tuple[Path, ModelFacts, NativeConfig]) -> None:
    _, facts, config = served
    sizes = (facts.layers, facts.heads, facts.kv_heads, facts.d_model, facts.d_head, facts.vocabulary, facts.context)
    assert sizes == (3, 4, 4, 32, 12, 320, 128)
    assert (facts.source, facts.family, facts.d_mlp) == ("native", "transformer_lens_native", config.d_mlp or 0)
    assert (facts.bos_token_id, facts.prepends_bos, facts.has_chat_template) == (0, True, False)
    assert not facts.parallel_blocks


def test_a_model_of_attention_alone_says_that_it_has_no_mlp(tmp_path: Path) -> None:
    facts = prepare_family("native_attention", tmp_path / "sources", tmp_path)
    sites = {site.name: site for site in facts.sites}
    for name in MLP_SITES:
        assert not sites[name].readable
        assert not sites[name].writable
        assert f"has no MLP and so no {name}: use " in str(sites[name].reason)
    with Engine(EngineLimits(threads=1)) as engine:
        model, job = load(tmp_path, facts), JobTicket("job", "owner")
        for name in MLP_SITES:
            site = Site(name, 0)
            with pytest.raises(InvalidRow, match="it has no MLP"):
                engine.submit(model, [Row(TOKENS, captures=(Capture(site),))], job=job)
            with pytest.raises(InvalidRow, match="it has no MLP"):
                engine.submit(model, [Row(TOKENS, (Intervention(site, None, "set", 0.0),))], job=job)


def test_scores_that_are_the_pattern_are_not_shown_as_scores(served: tuple[Path, ModelFacts, NativeConfig]) -> None:
    _, facts, _ = served
    sites = {site.name: site for site in facts.sites}
    assert not sites[SiteName.ATTN_SCORES].readable
    assert "after the softmax: use pattern" in str(sites[SiteName.ATTN_SCORES].reason)
    assert (sites[SiteName.PATTERN].readable, sites[SiteName.PATTERN].writable) == (True, False)


def test_weights_that_were_tampered_with_are_refused_when_prepared_and_when_loaded(tmp_path: Path) -> None:
    entry = tiny_entry("native_attention", tmp_path / "sources")
    facts = prepare_model(entry, tmp_path / "sources", tmp_path)
    for weights in (
        tmp_path / "sources" / "native_attention" / "model.safetensors",
        model_folder(tmp_path, facts.id) / "model.safetensors",
    ):
        changed = bytearray(weights.read_bytes())
        changed[-1] ^= 1
        weights.write_bytes(changed)
    with pytest.raises(CatalogueError, match="the catalogue expects"):
        prepare_model(entry, tmp_path / "sources", tmp_path / "other")
    with pytest.raises(JobFailed, match="prepare the model again"):
        load(tmp_path, facts)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"n_key_value_heads": 2}, "n_key_value_heads"),
        ({"normalization_type": None}, "normalization_type"),
        ({"model_type": "gpt2"}, "model_type"),
        ({"d_mlp": 48}, "attn_only = true and neither"),
        ({"n_heads": 0}, "n_heads"),
    ],
)
def test_a_config_that_it_cannot_honour_is_refused(changes: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    entry = tiny_entry("native_attention", tmp_path / "sources")
    path = tmp_path / "sources" / "native_attention" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    with pytest.raises(CatalogueError, match="does not describe a native model") as refused:
        prepare_model(entry, tmp_path / "sources", tmp_path)
    assert complaint in refused.value.message
