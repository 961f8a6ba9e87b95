"""The toy model of superposition: what counts as found, and that its page says what its figures say."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from examples.page import with_tables
from examples.superposition import DOCS, L1, SEEDS, draw, recovery, save, train_sae, train_toy
from examples.superposition_report import SCRIPT, tables
from services.saes.bundle import load_sae
from services.saes.sae import Sae


@pytest.fixture(scope="module")
def toy() -> Tensor:
    return train_toy(0, steps=300, batch=128)


@pytest.fixture(scope="module")
def sae(toy: Tensor) -> Sae:
    return train_sae(toy, 0, steps=200, batch=128)[0]


@pytest.fixture(scope="module")
def figures() -> Any:
    return json.loads((DOCS / "superposition.json").read_text(encoding="utf-8"))


def test_the_features_themselves_are_all_found_and_random_directions_find_none(toy: Tensor) -> None:
    random = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))
    assert recovery(toy, toy.T)["recovered"] == 1.0
    assert recovery(toy, random)["recovered"] == 0.0


def test_features_that_are_not_represented_do_not_count() -> None:
    W = torch.eye(4) * torch.tensor([1.0, 0.8, 0.5, 0.0])
    found = recovery(W, torch.eye(4)[1:])
    assert found["represented"] == 2
    assert found["recovered"] == 0.5
    assert found["cosines"] == [0.0, 1.0]


def test_training_finds_features_that_do_not_interfere() -> None:
    W = torch.cat([torch.eye(16), torch.zeros(16, 48)], dim=1)
    untrained = recovery(W, train_sae(W, 0, steps=1, batch=8)[0].W_dec)
    trained = recovery(W, train_sae(W, 0, steps=2000, batch=512)[0].W_dec)
    assert (untrained["represented"], untrained["recovered"]) == (16, 0.0)
    assert (trained["represented"], trained["recovered"]) == (16, 1.0)


@pytest.mark.filterwarnings("ignore")
def test_saelens_reads_the_saved_sae_and_encodes_the_same(toy: Tensor, sae: Sae, tmp_path: Path) -> None:
    from sae_lens import SAE  # noqa: PLC0415 - takes seconds; only the tests that need it pay

    save(sae, tmp_path)
    h = draw(200, torch.Generator().manual_seed(5)) @ toy.T
    ours = load_sae(tmp_path).encode(h)
    theirs = SAE.load_from_disk(str(tmp_path)).encode(h)
    torch.testing.assert_close(ours, sae.encode(h), atol=0, rtol=0)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert bool((ours > 0).any())


def test_the_pages_tables_are_those_of_the_committed_figures(figures: Any) -> None:
    text = (DOCS / "superposition.md").read_text(encoding="utf-8")
    assert with_tables(tables(figures), text, SCRIPT) == text


def test_in_the_committed_figures_every_seed_passes_the_bar(figures: Any) -> None:
    chosen = [run for run in figures["runs"] if run["l1"] == L1]
    assert [run["seed"] for run in chosen] == list(SEEDS)
    for run in chosen:
        represented = [norm for norm in run["norms"] if norm > 0.5]
        recovered = sum(cosine > 0.95 for cosine in run["cosines"])
        assert run["represented"] == len(represented) == len(run["cosines"])
        assert run["recovered"] == pytest.approx(recovered / len(represented), abs=1e-4)
        assert run["recovered"] >= 0.9
