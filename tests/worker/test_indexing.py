"""`lensd-worker index-sae` from the catalogue to the file, on a tiny Llama, against the model in float64."""

import json
import random
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from services.catalogue.catalogue import Catalogue, open_catalogue
from services.catalogue.feature_index import FeatureIndex, open_index, open_prepared
from services.catalogue.operator import file_sha256
from services.saes.bundle import load_sae, save_sae
from services.saes.config import WEIGHTS_FILE
from services.saes.sae import Sae, TopK
from tests.brute_force import Reference
from tests.prepared import prepare_family
from worker.cli import main

FEATURES, K = 24, 3
WORDS = ["When", "John", "and", "Mary", "went", "to", "the", "shops", "gave", "bag", "Eiffel", "Tower", "Paris", "Rome"]
SAES = {"early": (0, "resid_post"), "late": (1, "attn_out")}


def write_sae(root: Path, sae_id: str, threshold: float, *, prepend_bos: bool = True) -> str:
    layer, site = SAES.get(sae_id, (1, "resid_post"))
    generator = torch.Generator().manual_seed(layer)
    sae = Sae(
        W_enc=torch.randn(32, FEATURES, generator=generator),
        b_enc=torch.randn(FEATURES, generator=generator),
        W_dec=torch.randn(FEATURES, 32, generator=generator),
        b_dec=torch.randn(32, generator=generator),
        activation=TopK(K),
        apply_b_dec_to_input=True,
        hook_name=f"blocks.{layer}.hook_{site}",
        prepend_bos=prepend_bos,
        norm_threshold=threshold,
    )
    save_sae(sae, root / sae_id, model_name="tiny", context=128, dtype=torch.float32)
    sha256 = file_sha256(root / sae_id / WEIGHTS_FILE)
    return f'[[saes]]\nid = "{sae_id}"\nmodel = "tiny-llama"\npath = "{sae_id}"\nsha256 = "{sha256}"\n'


@pytest.fixture(scope="module")
def documents() -> list[list[str]]:
    rng = random.Random(5)
    return [[rng.choice(WORDS) for _ in range(length)] for length in (*(rng.randint(3, 40) for _ in range(24)), 150)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, documents: list[list[str]]) -> Path:
    """An operator's folder: the model in the store, SAEs in the catalogue, a corpus."""
    root = tmp_path_factory.mktemp("operator")
    prepare_family("llama", root, root / "home")
    sha256 = file_sha256(root / "llama" / "model.safetensors")
    model = '[[models]]\nid = "tiny-llama"\nname = "llama"\nrevision = "1"\n[models.source]\ntype = "folder"\n'
    source = f'path = "llama"\nsha256 = "{sha256}"\n'
    saes = [write_sae(root, sae_id, threshold) for sae_id, threshold in (("early", 9.5), ("late", 7.4))]
    saes.append(write_sae(root, "without-bos", 9.5, prepend_bos=False))
    (root / "catalogue.toml").write_text("\n".join([model + source, *saes]), encoding="utf-8")
    lines = [
        {"id": f"d{number}", "source": "s", "licence": "CC0", "text": " ".join(words)}
        for number, words in enumerate(documents)
    ]
    (root / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return root


Run = Callable[..., None]


@pytest.fixture
def run(root: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("LENSD_HOME", str(root / "home"))
    monkeypatch.setenv("LENSD_CATALOGUE", str(root / "catalogue.toml"))
    monkeypatch.setenv("LENSD_THREADS", "1")
    return lambda *arguments: main([str(argument) for argument in arguments])


def rows_of(catalogue: Catalogue, root: Path) -> list[list[int]]:
    """Each document's tokens in pieces of 127, so that BOS makes them 128."""
    tokenizer = catalogue.tokenizer("tiny-llama")
    lines = (root / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
    documents = [list(tokenizer.read_text(json.loads(line)["text"], bos=False).ids) for line in lines]
    return [ids[start : start + 127] for ids in documents for start in range(0, len(ids), 127)]


def check_against_the_reference(index: FeatureIndex, sae_id: str, root: Path) -> None:
    rows = rows_of(open_catalogue(root / "home"), root)
    layer, site = SAES[sae_id]
    reference, sae = Reference(root / "llama"), load_sae(root / sae_id)
    assert sae.norm_threshold is not None
    x = torch.cat([reference.activations([0, *row], [(site, layer)])[site, layer][1:] for row in rows])
    counted = x.norm(dim=1) <= sae.norm_threshold
    assert 0.5 < float(counted.double().mean()) < 1.0, "some tokens are over the threshold"
    pre = (x - sae.b_dec.double()) @ sae.W_enc.double() + sae.b_enc.double()
    kept = pre >= pre.sort(dim=1, descending=True).values[:, K - 1 : K]
    features = torch.where(kept, pre.clamp(min=0), 0.0) * counted[:, None]
    weights = load_file(root / "llama" / "model.safetensors")
    logits = sae.W_dec.double() * weights["model.norm.weight"].double() @ weights["lm_head.weight"].double().T
    assert index.facts.tokens == len(x) == sum(map(len, rows))
    assert index.facts.tokens_over_norm == int((~counted).sum())
    assert index.facts.sae_sha256 == sae.sha256
    for feature in range(FEATURES):
        card, fired = index.card(feature), features[:, feature]
        assert card.active_tokens == int((fired > 0).sum())
        assert card.density == pytest.approx(float((fired > 0).sum() / counted.sum()))
        assert card.max_activation == pytest.approx(float(fired.max()), abs=1e-4)
        np.testing.assert_allclose(
            [token.logit for token in card.promoted], logits[feature].sort(descending=True).values[:10], atol=1e-4
        )
        np.testing.assert_allclose(
            [token.logit for token in card.suppressed], logits[feature].sort().values[:10], atol=1e-4
        )
        for token in card.promoted:
            assert token.logit == pytest.approx(float(logits[feature, token.token_id]), abs=1e-4)


def test_one_pass_indexes_several_saes_and_prepares_what_it_made(root: Path, run: Run) -> None:
    run("prepare", "early", "late")
    run("index-sae", "late", "early", "--corpus", root / "corpus.jsonl")
    catalogue = open_catalogue(root / "home")
    for sae_id in SAES:
        assert (root / sae_id / "features.sqlite").is_file()
        stored = root / "home" / "saes" / sae_id / "features.sqlite"
        with closing(open_prepared(catalogue, stored)) as index:
            assert catalogue.sae(sae_id).index == index.facts
            check_against_the_reference(index, sae_id, root)
    assert not any((root / "home" / "indexing").iterdir())


def test_out_and_tokens_say_where_the_index_goes_and_over_how_much(root: Path, run: Run, tmp_path: Path) -> None:
    run("prepare", "early")
    run("index-sae", "early", "--corpus", root / "corpus.jsonl", "--tokens", 50, "--out", tmp_path)
    with closing(open_index(tmp_path / "early" / "features.sqlite")) as index:
        assert (index.facts.tokens, index.card(0).sae) == (50, "early")


def test_what_cannot_be_indexed_is_refused_in_one_line(root: Path, run: Run, tmp_path: Path) -> None:
    corpus = root / "corpus.jsonl"
    for arguments, message in (
        (("none", "--corpus", corpus), "the catalogue has no none"),
        (("without-bos", "--corpus", corpus), "without-bos is not prepared: run `lensd-worker prepare without-bos`"),
        (("early", "--corpus", tmp_path / "none"), "cannot be read"),
    ):
        run("prepare", "early")
        with pytest.raises(SystemExit, match=message):
            run("index-sae", *arguments)
    with pytest.raises(SystemExit):
        run("index-sae", "early", "--corpus", corpus, "--tokens", "0")
    run("prepare", "without-bos")
    with pytest.raises(SystemExit, match="differ in their model or BOS rule"):
        run("index-sae", "early", "without-bos", "--corpus", corpus)
