"""The SAEs that ship: their files are the cards', and their figures are measured again."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.catalogue.feature_index import open_index
from services.catalogue.feature_indexes import INDEX_FILE
from services.saes.bundle import load_sae
from services.saes.config import WEIGHTS_FILE, sha256_of
from services.saes.recipe.card import CARD_FILE, CHECK_SAMPLE_FILE, README_FILE, render
from services.saes.recipe.evaluate import evaluate
from services.saes.recipe.language_model import split_model
from tests.services.saes.conftest import SHIPPED

ASSETS = SHIPPED.parent


@pytest.fixture(scope="module", params=[7, 15, 23])
def folder(request: pytest.FixtureRequest) -> Path:
    return ASSETS / f"smollm2-135m-l{request.param}-resid-post"


@pytest.fixture(scope="module")
def card(folder: Path) -> dict[str, Any]:
    contents: dict[str, Any] = json.loads((folder / CARD_FILE).read_text(encoding="utf-8"))
    return contents


def test_the_card_names_the_files_that_ship(folder: Path, card: dict[str, Any]) -> None:
    assert {name: sha256_of(folder / name) for name in card["files"]} == card["files"]
    assert (folder / WEIGHTS_FILE).stat().st_size < 12_000_000


def test_the_readme_is_generated_from_the_card(folder: Path, card: dict[str, Any]) -> None:
    assert (folder / README_FILE).read_text(encoding="utf-8") == render(card)


def test_a_shipped_sae_carries_its_conventions(folder: Path, card: dict[str, Any]) -> None:
    sae = load_sae(folder, expected_sha256=card["files"][WEIGHTS_FILE], d_model=576)
    assert (sae.d_sae, sae.k, sae.layer, sae.prepend_bos) == (4096, 32, card["recipe"]["layer"], True)
    assert sae.model_id == "smollm2-135m"
    assert sae.norm_threshold == card["training"]["norm_threshold"]
    assert sae.mean_activation is not None


def test_the_held_out_figures_are_good_enough(card: dict[str, Any]) -> None:
    heldout = card["heldout"]
    assert heldout["tokens"] > 60_000
    assert heldout["explained_variance"] >= 0.80
    assert heldout["recovered_against_zero"] >= 0.97
    assert card["training"]["dead_fraction"] <= 0.10


def test_an_index_comes_with_every_shipped_sae(folder: Path, card: dict[str, Any]) -> None:
    index = open_index(folder / INDEX_FILE)
    assert index.features == card["recipe"]["d_sae"]
    assert index.facts.sae_sha256 == card["files"][WEIGHTS_FILE]
    assert index.facts.tokens > 300_000
    assert index.card(0).corpus == index.facts


def test_the_shipped_indexes_are_small() -> None:
    assert sum(path.stat().st_size for path in ASSETS.glob(f"*/{INDEX_FILE}")) < 15_000_000


def test_measuring_the_check_sample_again_gives_the_cards_figures(
    folder: Path, card: dict[str, Any], smollm2_folder: Path
) -> None:
    tokens = np.array(json.loads((folder / CHECK_SAMPLE_FILE).read_text())["tokens"], dtype=np.int32)
    torch.set_num_threads(2)
    measured = asdict(evaluate(load_sae(folder), split_model(smollm2_folder, card["recipe"]["layer"]), tokens))
    assert measured == pytest.approx(card["check_sample"], rel=1e-3)
