"""The induction model that ships: its files are the card's, and its figures are measured again, through the engine."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from services.catalogue.catalogue import Catalogue, model_folder
from services.catalogue.operator import file_sha256
from services.contracts.site import SiteName
from services.engine.engine import Engine, EngineLimits
from services.engine.outcome import Outcome
from services.engine.readout import Loss
from services.engine.row import Capture, Intervention, Row, Site
from services.engine.ticket import JobTicket
from services.models.load import LoadedModel, load_model
from services.models.recipe.card import CARD, README, render
from tests.conftest import PROJECT

SHIPPED = PROJECT / "assets" / "models" / "induction-2l"
PERIOD = 40
ROWS = 24
PATTERNS = tuple(Capture(Site(SiteName.PATTERN, layer)) for layer in range(2))


@pytest.fixture(scope="module")
def card() -> dict[str, Any]:
    contents: dict[str, Any] = json.loads((SHIPPED / CARD).read_text(encoding="utf-8"))
    return contents


@pytest.fixture(scope="module")
def model(catalogue: Catalogue) -> LoadedModel:
    facts = catalogue.model("induction-2l")
    folder: Path = model_folder(catalogue.home, facts.id)
    return load_model(folder, facts, device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(EngineLimits(threads=1)) as running:
        yield running


@pytest.fixture(scope="module")
def prompts() -> list[tuple[int, ...]]:
    """Fresh ones, drawn without the recipe's code: BOS and distinct random words, said twice."""
    generator = torch.Generator().manual_seed(20_261_125)
    drawn = [(torch.randperm(254, generator=generator)[:PERIOD] + 2).tolist() for _ in range(ROWS)]
    return [(0, *words, *words) for words in drawn]


def run(engine: Engine, model: LoadedModel, rows: list[Row]) -> list[Outcome]:
    return engine.run(model, rows, job=JobTicket("job", "owner"))


def patterns(outcomes: list[Outcome]) -> Tensor:
    """Mean over rows of attention [layer, head, query, key]."""
    shown = [torch.stack([outcome.captures[capture] for capture in PATTERNS]) for outcome in outcomes]
    return torch.stack(shown).mean(0).transpose(1, 2)


def halves(engine: Engine, model: LoadedModel, prompts: list[tuple[int, ...]], *ablated: Site) -> tuple[float, float]:
    """Mean loss of the words of the first half and of the second, heads in `ablated` set to zero everywhere."""
    changes = tuple(Intervention(site, None, "set", 0.0) for site in ablated)
    lengths = (PERIOD, 2 * PERIOD)
    rows = [Row(prompt, changes, readout=Loss(prompt[1 : 1 + length])) for length in lengths for prompt in prompts]
    losses = torch.stack([outcome.values() for outcome in run(engine, model, rows)]).reshape(2, -1).mean(1)
    first, both = losses.tolist()
    return first, 2 * both - first


def heads(scores: list[list[float]], layer: int, *, over: float) -> tuple[Site, ...]:
    return tuple(Site(SiteName.Z, layer, head) for head, score in enumerate(scores[layer]) if score > over)


def test_the_card_names_the_files_that_ship(card: dict[str, Any]) -> None:
    assert {name: file_sha256(SHIPPED / name) for name in card["files"]} == card["files"]
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 2_000_000
    assert (SHIPPED / README).read_text(encoding="utf-8") == render(card)


def test_it_has_induction_heads_behind_previous_token_heads(card: dict[str, Any]) -> None:
    heldout = card["heldout"]
    assert max(heldout["induction"][1]) >= 0.9
    assert max(heldout["previous_token"][0]) >= 0.6
    assert max(heldout["previous_token"][1]) < 0.1
    assert max(heldout["induction"][0]) < 0.1
    assert heldout["loss_first_half"] - heldout["loss_second_half"] > 4


def test_fresh_rows_through_the_engine_have_the_cards_scores(
    card: dict[str, Any], model: LoadedModel, engine: Engine, prompts: list[tuple[int, ...]]
) -> None:
    pattern = patterns(run(engine, model, [Row(prompt, captures=PATTERNS) for prompt in prompts]))
    later, second_half = range(1, 2 * PERIOD + 1), range(PERIOD + 1, 2 * PERIOD + 1)
    induction = torch.stack([pattern[..., at, at - PERIOD + 1] for at in second_half]).mean(0)
    previous_token = torch.stack([pattern[..., at, at - 1] for at in later]).mean(0)
    torch.testing.assert_close(induction, torch.tensor(card["heldout"]["induction"]), rtol=0, atol=0.05)
    torch.testing.assert_close(previous_token, torch.tensor(card["heldout"]["previous_token"]), rtol=0, atol=0.05)


def test_fresh_rows_through_the_engine_have_the_cards_losses(
    card: dict[str, Any], model: LoadedModel, engine: Engine, prompts: list[tuple[int, ...]]
) -> None:
    first, second = halves(engine, model, prompts)
    assert first == pytest.approx(card["heldout"]["loss_first_half"], abs=0.1)
    assert second == pytest.approx(card["heldout"]["loss_second_half"], abs=0.1)


def test_the_gain_is_the_work_of_its_induction_heads_and_of_its_previous_token_heads(
    card: dict[str, Any], model: LoadedModel, engine: Engine, prompts: list[tuple[int, ...]]
) -> None:
    induction = heads(card["heldout"]["induction"], 1, over=0.5)
    previous_token = heads(card["heldout"]["previous_token"], 0, over=0.5)
    others = tuple(site for site in heads(card["heldout"]["previous_token"], 0, over=0.0) if site not in previous_token)

    def gain(*ablated: Site) -> float:
        first, second = halves(engine, model, prompts, *ablated)
        return first - second

    whole = gain()
    assert gain(*induction) < 0.1 * whole
    assert gain(*previous_token) < 0.4 * whole
    assert gain(*others) > 0.9 * whole
