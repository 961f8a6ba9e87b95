"""The SAE that ships: its files are the card's, and its figures are measured again."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.saes.bundle import load_sae
from services.saes.config import WEIGHTS_FILE, sha256_of
from services.saes.recipe.card import CARD_FILE, CHECK_SAMPLE_FILE, README_FILE, render
from services.saes.recipe.evaluate import evaluate
from services.saes.recipe.language_model import split_model
from tests.services.saes.conftest import SHIPPED


@pytest.fixture(scope="module")
def card() -> dict[str, Any]:
    contents: dict[str, Any] = json.loads((SHIPPED / CARD_FILE).read_text(encoding="utf-8"))
    return contents


def test_the_card_names_the_files_that_ship(card: dict[str, Any]) -> None:
    assert {name: sha256_of(SHIPPED / name) for name in card["files"]} == card["files"]
    assert (SHIPPED / WEIGHTS_FILE).stat().st_size < 12_000_000


def test_the_readme_is_generated_from_the_card(card: dict[str, Any]) -> None:
    assert (SHIPPED / README_FILE).read_text(encoding="utf-8") == render(card)


def test_the_shipped_sae_carries_its_conventions(card: dict[str, Any]) -> None:
    sae = load_sae(SHIPPED, expected_sha256=card["files"][WEIGHTS_FILE], d_model=576)
    assert (sae.d_sae, sae.k, sae.layer, sae.prepend_bos) == (4096, 32, 15, True)
    assert sae.model_id == "smollm2-135m"
    assert sae.norm_threshold == card["training"]["norm_threshold"]
    assert sae.mean_activation is not None


def test_the_held_out_figures_are_good_enough(card: dict[str, Any]) -> None:
    heldout = card["heldout"]
    assert heldout["tokens"] > 60_000
    assert heldout["explained_variance"] > 0.78
    assert heldout["recovered_against_mean"] > 0.94
    assert card["training"]["dead_fraction"] < 0.15


def test_measuring_the_check_sample_again_gives_the_cards_figures(card: dict[str, Any], smollm2_folder: Path) -> None:
    tokens = np.array(json.loads((SHIPPED / CHECK_SAMPLE_FILE).read_text())["tokens"], dtype=np.int32)
    torch.set_num_threads(2)
    measured = asdict(evaluate(load_sae(SHIPPED), split_model(smollm2_folder, card["recipe"]["layer"]), tokens))
    assert measured == pytest.approx(card["check_sample"], rel=1e-3)
