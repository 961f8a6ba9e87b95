"""SAEs on their way into the store, and on the worker's shelf."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from services.catalogue.catalogue import open_catalogue
from services.catalogue.feature_file import IndexHeader, Ranked
from services.catalogue.feature_indexes import INDEX_FILE
from services.catalogue.operator import CatalogueError, SaeEntry, file_sha256
from services.catalogue.store import has_index_of
from services.contracts.feature_site import sae_violations
from services.saes.bundle import load_sae
from services.saes.config import CONFIG_FILE, EXTRAS_FILE, WEIGHTS_FILE
from services.saes.index.contexts import describe
from services.saes.index.corpus import IndexCorpus
from services.saes.index.firings import FeatureFirings
from services.saes.index.writer import write_index
from services.saes.prepare import CARD_FILE, prepare_sae
from services.saes.sae import Sae
from services.saes.shelf import SaeShelf
from tests.services.saes.conftest import D_MODEL, D_SAE

SaeFolder = Callable[..., Path]


def entry(folder: Path, **changes: Any) -> SaeEntry:
    fields = {"id": "tiny", "model": "m", "path": folder.name, "sha256": file_sha256(folder / WEIGHTS_FILE), **changes}
    return SaeEntry(**fields)


def on_hook(name: str) -> dict[str, Any]:
    return {"sae_lens_version": "6.54.12", "hook_name": name, "prepend_bos": True}


@pytest.mark.parametrize(
    ("hook", "site"),
    [
        ("blocks.3.hook_resid_pre", "resid_pre"),
        ("blocks.3.hook_out", "resid_post"),
        ("blocks.3.hook_mlp_out", "mlp_out"),
    ],
)
def test_an_sae_is_prepared_with_the_site_that_its_hook_names(
    sae_folder: SaeFolder, tmp_path: Path, hook: str, site: str
) -> None:
    folder = sae_folder(metadata=on_hook(hook))
    facts = prepare_sae(entry(folder), tmp_path, tmp_path / "home")
    assert (facts.site, facts.layer, facts.features, facts.bos, facts.k) == (site, 3, 40, True, 5)
    assert open_catalogue(tmp_path / "home").saes == {"tiny": facts}


@pytest.mark.parametrize("hook", ["blocks.3.attn.hook_q", "blocks.3.mlp.hook_in", "blocks.3.ln2.hook_normalized"])
def test_a_hook_that_no_job_can_read_is_refused(sae_folder: SaeFolder, tmp_path: Path, hook: str) -> None:
    folder = sae_folder(metadata=on_hook(hook))
    message = "lensd reads SAEs of the residual stream, attn_out, mlp_out and attn.hook_z"
    with pytest.raises(CatalogueError, match=message):
        prepare_sae(entry(folder), tmp_path, tmp_path / "home")


def test_an_sae_of_z_is_prepared_with_its_heads_side_by_side(sae_folder: SaeFolder, tmp_path: Path) -> None:
    folder = sae_folder(metadata=on_hook("blocks.3.attn.hook_z"), reshape_activations="hook_z")
    facts = prepare_sae(entry(folder), tmp_path, tmp_path / "home")
    assert (facts.site, facts.layer, facts.d_model, facts.output) == ("z", 3, D_MODEL, None)


TRANSCODER: dict[str, Any] = {"architecture": "transcoder", "d_out": D_MODEL, "apply_b_dec_to_input": False}


@pytest.mark.parametrize(
    ("reads", "site", "normed"),
    [("mlp.hook_in", "resid_mid", True), ("hook_mlp_in", "resid_mid", False), ("hook_resid_pre", "resid_pre", False)],
)
def test_a_transcoder_is_prepared_with_both_of_its_sites(
    sae_folder: SaeFolder, tmp_path: Path, reads: str, site: str, normed: bool
) -> None:
    hooks = on_hook(f"blocks.3.{reads}") | {"hook_name_out": "blocks.3.hook_mlp_out"}
    facts = prepare_sae(entry(sae_folder(**TRANSCODER, metadata=hooks)), tmp_path, tmp_path / "home")
    assert (facts.architecture, facts.site, facts.layer, facts.mlp_norm) == ("transcoder", site, 3, normed)
    assert facts.output is not None
    assert (facts.output.site, facts.output.layer, facts.output.width) == ("mlp_out", 3, D_MODEL)
    assert (facts.output.hook_name, facts.output.skip) == ("blocks.3.hook_mlp_out", False)
    assert open_catalogue(tmp_path / "home").saes == {"tiny": facts}


@pytest.mark.parametrize(
    ("reads", "writes", "message"),
    [
        ("blocks.3.attn.hook_z", "blocks.3.hook_mlp_out", "hook_z goes with an SAE"),
        ("blocks.3.ln2.hook_normalized", "blocks.3.hook_mlp_out", r"the MLP's input \(mlp.hook_in\)"),
        ("blocks.3.hook_resid_mid", "blocks.3.mlp.hook_post", "writes blocks.3.mlp.hook_post"),
        ("blocks.3.hook_resid_mid", "blocks.4.mlp.hook_in", "writes blocks.4.mlp.hook_in"),
        ("blocks.3.hook_resid_post", "blocks.3.hook_mlp_out", "which the model has before blocks.3.hook_resid_post"),
        ("blocks.3.hook_mlp_out", "blocks.3.hook_mlp_out", "which the model has before"),
    ],
)
def test_a_transcoder_between_places_that_lensd_does_not_have_is_refused(
    sae_folder: SaeFolder, tmp_path: Path, reads: str, writes: str, message: str
) -> None:
    folder = sae_folder(**TRANSCODER, metadata=on_hook(reads) | {"hook_name_out": writes})
    with pytest.raises(CatalogueError, match=message):
        prepare_sae(entry(folder), tmp_path, tmp_path / "home")
    assert list((tmp_path / "home" / "saes").iterdir()) == []


def test_weights_that_the_catalogue_does_not_expect_are_refused_and_leave_nothing(
    sae_folder: SaeFolder, tmp_path: Path
) -> None:
    folder = sae_folder()
    with pytest.raises(CatalogueError, match=r"tiny: .* has sha256"):
        prepare_sae(entry(folder, sha256="0" * 64), tmp_path, tmp_path / "home")
    assert list((tmp_path / "home" / "saes").iterdir()) == []


def test_the_shelf_keeps_the_latest_used_within_its_bytes(sae_folder: SaeFolder) -> None:
    folder = sae_folder()
    loaded: list[str] = []

    def load(sae_id: str) -> Sae:
        loaded.append(sae_id)
        return load_sae(folder)

    nbytes = sum(tensor.nbytes for tensor in load("").tensors())
    loaded.clear()
    shelf = SaeShelf(load, limit_bytes=2 * nbytes)
    for sae_id in ("a", "b", "a", "c", "a", "b"):
        shelf.get(sae_id)
    assert loaded == ["a", "b", "c", "b"]


def test_the_shelf_counts_every_tensor(sae_folder: SaeFolder) -> None:
    sae = load_sae(sae_folder(architecture="gated"))
    held = replace(sae, mean_activation=torch.zeros(D_MODEL))
    assert len(sae.tensors()) == len({"W_enc", "b_gate", "W_dec", "b_dec", "r_mag", "b_mag"})
    assert len(held.tensors()) == len(sae.tensors()) + 1


def test_an_sae_in_use_is_never_loaded_twice(sae_folder: SaeFolder) -> None:
    folder = sae_folder()
    loaded: list[str] = []

    def load(sae_id: str) -> Sae:
        loaded.append(sae_id)
        return load_sae(folder)

    shelf = SaeShelf(load, limit_bytes=1)
    in_use = shelf.get("a")
    shelf.get("b")
    assert shelf.get("a") is in_use
    shelf.get("b")
    assert loaded == ["a", "b", "b"]


def test_the_facts_echo_the_conventions(sae_folder: SaeFolder, tmp_path: Path) -> None:
    folder = sae_folder(rescale_acts_by_decoder_norm=True, apply_b_dec_to_input=False)
    facts = prepare_sae(entry(folder), tmp_path, tmp_path / "home")
    assert (facts.hook_name, facts.apply_b_dec_to_input) == ("blocks.1.hook_resid_post", False)
    assert (facts.decoder_norms_folded, facts.normalize_activations) == (True, "none")
    assert not list(sae_violations(facts, "/sae"))


def test_an_sae_that_scales_each_token_cannot_be_written_back(sae_folder: SaeFolder, tmp_path: Path) -> None:
    facts = prepare_sae(entry(sae_folder(normalize_activations="layer_norm")), tmp_path, tmp_path / "home")
    (violation,) = sae_violations(facts, "/method/sae")
    assert violation.pointer == "/method/sae"
    assert "can be read but not written" in violation.message


def test_another_models_sae_is_refused(sae_folder: SaeFolder, tmp_path: Path) -> None:
    folder = sae_folder(metadata={**on_hook("blocks.1.hook_out"), "lensd": {"model_id": "other"}})
    with pytest.raises(CatalogueError, match="was trained on other, the catalogue gives it to m"):
        prepare_sae(entry(folder), tmp_path, tmp_path / "home")


def test_a_mean_activation_that_the_catalogue_does_not_expect_is_refused(sae_folder: SaeFolder, tmp_path: Path) -> None:
    folder = sae_folder()
    save_file({"mean_activation": torch.zeros(D_MODEL)}, folder / EXTRAS_FILE)
    pinned = entry(folder, extras_sha256=file_sha256(folder / EXTRAS_FILE))
    assert prepare_sae(pinned, tmp_path, tmp_path / "home").extras_sha256 == pinned.extras_sha256
    save_file({"mean_activation": torch.ones(D_MODEL)}, folder / EXTRAS_FILE)
    with pytest.raises(CatalogueError, match=r"lensd.safetensors has sha256"):
        prepare_sae(pinned, tmp_path, tmp_path / "home")


def test_the_config_is_pinned_in_the_facts_and_may_be_in_the_catalogue(sae_folder: SaeFolder, tmp_path: Path) -> None:
    folder = sae_folder()
    sha256 = file_sha256(folder / CONFIG_FILE)
    assert prepare_sae(entry(folder), tmp_path, tmp_path / "home").config_sha256 == sha256
    pinned = entry(folder, config_sha256=sha256)
    assert prepare_sae(pinned, tmp_path, tmp_path / "home").config_sha256 == sha256
    (folder / CONFIG_FILE).write_text((folder / CONFIG_FILE).read_text() + " ")
    with pytest.raises(CatalogueError, match=r"tiny: .*cfg.json has sha256"):
        prepare_sae(pinned, tmp_path, tmp_path / "home")


@pytest.mark.parametrize(
    "card",
    [b"{", b"[]", b"[" * 100_000, b"\xff", b" " * 1_000_001],
    ids=["cut short", "no object", "too deep", "no text", "too large"],
)
def test_a_damaged_card_is_refused(sae_folder: SaeFolder, tmp_path: Path, card: bytes) -> None:
    folder = sae_folder()
    (folder / CARD_FILE).write_bytes(card)
    with pytest.raises(CatalogueError, match=r"tiny: .*card.json"):
        prepare_sae(entry(folder), tmp_path, tmp_path / "home")


def indexed(folder: Path, corpus: IndexCorpus, **changes: Any) -> None:
    """Puts an index beside the SAE in `folder`, as if made for what `changes` says."""
    header = {
        "features": D_SAE,
        "tokens": len(corpus.tokens),
        "tokens_over_norm": 0,
        "documents": len(corpus.starts),
        "corpus": corpus.description,
        "corpus_sha256": corpus.sha256,
        "sae_sha256": file_sha256(folder / WEIGHTS_FILE),
        **changes,
    }
    nothing = Ranked(np.zeros(0, np.uint32), np.zeros(0, np.float32))
    silent = (
        describe(
            FeatureFirings(feature, np.zeros(0, np.int64), np.zeros(0, np.float32)),
            corpus,
            promoted=nothing,
            suppressed=nothing,
            nearest_by_decoder=nothing,
            nearest_by_coactivation=nothing,
        )
        for feature in range(header["features"])
    )
    write_index(folder / INDEX_FILE, IndexHeader(**header), corpus, silent, str)


@pytest.fixture
def corpus() -> IndexCorpus:
    return IndexCorpus(np.arange(9, dtype=np.uint32), np.array([0, 4]), ("a", "b"), ("s", "s"), 3, "CC0", "c" * 64)


def test_an_index_beside_the_sae_is_prepared_with_it(
    sae_folder: SaeFolder, corpus: IndexCorpus, tmp_path: Path
) -> None:
    folder, home = sae_folder(), tmp_path / "home"
    stored = home / "saes" / "tiny"
    assert prepare_sae(entry(folder), tmp_path, home).index is None
    assert has_index_of(stored, folder)
    indexed(folder, corpus)
    assert not has_index_of(stored, folder), "an index that came later has to be prepared"
    index = prepare_sae(entry(folder), tmp_path, home).index
    assert has_index_of(stored, folder)
    assert index is not None
    assert (index.tokens, index.documents, index.corpus) == (9, 2, "CC0")
    assert index.sha256 == file_sha256(stored / INDEX_FILE)
    (folder / INDEX_FILE).unlink()
    assert not has_index_of(stored, folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sae_sha256": "0" * 64}, "was made for the weights 000.*make it again with `lensd-worker index-sae`"),
        ({"features": 39}, "holds 39 features, the SAE has 40"),
    ],
)
def test_another_saes_index_is_refused(
    sae_folder: SaeFolder, corpus: IndexCorpus, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = sae_folder()
    indexed(folder, corpus, **changes)
    with pytest.raises(CatalogueError, match=message):
        prepare_sae(entry(folder), tmp_path, tmp_path / "home")


def test_a_truncated_index_is_refused(sae_folder: SaeFolder, corpus: IndexCorpus, tmp_path: Path) -> None:
    folder = sae_folder()
    indexed(folder, corpus)
    (folder / INDEX_FILE).write_bytes((folder / INDEX_FILE).read_bytes()[:-1])
    with pytest.raises(CatalogueError, match=r"tiny: features.sqlite has .* truncated or padded"):
        prepare_sae(entry(folder), tmp_path, tmp_path / "home")
