"""Gradients at every site against finite differences of plain forward passes."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode

from services.contracts.site import HEAD_SITES, SiteName
from services.engine.engine import Engine, EngineLimits
from services.engine.objective import Objective, Weighted, WeightedProbabilities
from services.engine.outcome import Outcome
from services.engine.readout import Divergence, Loss, Readout, TokenLogits, TokenLogProbs
from services.engine.row import Capture, FromRun, Gradients, Intervention, Row, Site
from services.engine.ticket import JobTicket
from services.models.load import LoadedModel
from tests.families import FAMILIES, NATIVES
from tests.services.engine.conftest import LoadTiny, Plain
from tests.services.engine.test_random_rows import Draw, plain_changes

TOKENS = (17, 41, 5, 230, 99, 8, 120, 77)
SOURCE = (17, 52, 5, 230, 98, 8, 121, 77)
READ = TokenLogits(7, (33, 60))
DIFFERENCE = Weighted((1.0, -1.0))
STEP = 1e-5
TOLERANCE = 1e-5
"""Relative to the largest gradient at the site; a tenth of it where all of them nearly vanish."""
ROWS = 10

METRICS: dict[str, tuple[Readout, Objective]] = {
    "logit_diff": (READ, DIFFERENCE),
    "log_prob": (TokenLogProbs(6, (33,)), Weighted((1.0,))),
    "prob_diff": (TokenLogProbs(7, (33, 34, 60)), WeightedProbabilities((1.0, 1.0, -1.0))),
    "kl_divergence": (Divergence(7, SOURCE), Weighted((1.0,))),
    "cross_entropy": (Loss(TOKENS[1:]), Weighted((1.0,))),
}


def plain_metric(plain: Plain, name: str, logits: Float[Tensor, "position vocabulary"]) -> float:
    """The metrics once more, by their definitions."""
    probabilities = logits.softmax(-1)
    match name:
        case "logit_diff":
            value = logits[7, 33] - logits[7, 60]
        case "log_prob":
            value = probabilities[6, 33].log()
        case "prob_diff":
            value = probabilities[7, 33] + probabilities[7, 34] - probabilities[7, 60]
        case "kl_divergence":
            reference = plain.logits(SOURCE)[7].softmax(-1)
            value = (reference * (reference / probabilities[7]).log()).sum()
        case _:
            value = -torch.stack([probabilities[t, token].log() for t, token in enumerate(TOKENS[1:])]).mean()
    return float(value)


def every_site(model: LoadedModel) -> tuple[Capture, ...]:
    """All positions of all sites that can be written, and of one head where there are heads."""
    found = []
    for facts in model.facts.sites:
        layers = [None] if facts.name is SiteName.EMBED else range(model.facts.layers)
        for layer in layers if facts.writable and facts.readable else ():
            found.append(Capture(Site(facts.name, layer)))
            if facts.name in HEAD_SITES:
                found.append(Capture(Site(facts.name, layer, head=1), (5, 2)))
    return tuple(found)


def bump(capture: Capture, where: tuple[int, ...], step: float) -> Callable[[Tensor], Tensor]:
    """Add `step` to one coordinate of what a capture names."""
    position, *inner = where
    absolute = position if capture.positions is None else capture.positions[position]
    head = [] if capture.site.head is None else [capture.site.head]

    def change(activation: Tensor) -> Tensor:
        activation[(absolute, *head, *inner)] += step
        return activation

    return change


class TrulyFloat64(TorchFunctionMode):
    """Families compute norms, softmax or attention in float32 whatever their weights: too coarse for differences."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is Tensor.float:
            return args[0].double()
        args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
        kwargs = {name: torch.float64 if arg is torch.float32 else arg for name, arg in (kwargs or {}).items()}
        return function(*args, **kwargs)


def coordinate(gradient: Tensor, chooser: random.Random) -> tuple[int, ...]:
    return tuple(chooser.randrange(size) for size in gradient.shape)


def difference(
    plain: Plain, row: Row, capture: Capture, where: tuple[int, ...], metric: Callable[[Tensor], float]
) -> float:
    """The metric's central difference at one coordinate, the row's interventions made."""
    site, changes = capture.site, plain_changes(plain, row)
    with TrulyFloat64():
        up, down = (
            metric(plain.logits(row.tokens, *changes, (site.name, site.layer, bump(capture, where, step))))
            for step in (STEP, -STEP)
        )
    return (up - down) / (2 * STEP)


def assert_gradients_hold(
    model: LoadedModel, row: Row, outcome: Outcome, metric: Callable[[Tensor], float], seed: int
) -> None:
    plain, chooser = Plain(model), random.Random(seed)
    assert row.gradients is not None
    for capture in row.gradients.sites:
        gradient = outcome.gradients[capture]
        where = coordinate(gradient, chooser)
        expected = difference(plain, row, capture, where, metric)
        tolerance = TOLERANCE * max(0.1, float(gradient.abs().max()))
        assert float(gradient[where]) == pytest.approx(expected, rel=0, abs=tolerance), (capture, where)


def logit_difference(logits: Float[Tensor, "position vocabulary"]) -> float:
    return float(logits[-1, 33] - logits[-1, 60])


@pytest.mark.parametrize("family", [*FAMILIES, *NATIVES])
def test_the_gradient_at_every_site_is_the_finite_difference_there(
    family: str, load_tiny: LoadTiny, engine: Engine, job: JobTicket
) -> None:
    model = load_tiny(family, torch.float64)
    row = Row(TOKENS, readout=READ, gradients=Gradients(DIFFERENCE, every_site(model)))
    (outcome,) = engine.run(model, [row], job=job)
    assert_gradients_hold(model, row, outcome, logit_difference, seed=1)
    assert_gradients_hold(model, row, outcome, logit_difference, seed=2)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_every_metric_has_its_gradient(
    family: str, name: str, load_tiny: LoadTiny, engine: Engine, job: JobTicket
) -> None:
    model = load_tiny(family, torch.float64)
    readout, objective = METRICS[name]
    sites = tuple(Capture(Site(site, layer)) for site in (SiteName.Z, SiteName.RESID_MID) for layer in range(2))
    row = Row(TOKENS, readout=readout, gradients=Gradients(objective, sites))
    (outcome,) = engine.run(model, [row], job=job)
    (unasked,) = engine.run(model, [replace(row, gradients=None)], job=job)
    torch.testing.assert_close(outcome.values(), unasked.values(), rtol=1e-6, atol=1e-6)
    plain = Plain(model)
    assert_gradients_hold(model, row, outcome, lambda logits: plain_metric(plain, name, logits), seed=3)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "gemma2", "qwen3"])
def test_gradients_are_taken_behind_a_rows_interventions(family: str, load_tiny: LoadTiny) -> None:
    model = load_tiny(family, torch.float64)
    draw, plain, chooser = Draw(model, seed=5), Plain(model), random.Random(5)
    sites = [capture for capture in every_site(model) if capture.positions is None]
    rows: list[Row] = []
    while len(rows) < ROWS:
        row = draw.row()
        if row.interventions and bool(plain.logits(row.tokens, *plain_changes(plain, row)).isfinite().all()):
            changed = [Capture(change.site) for change in row.interventions]
            chosen = tuple(dict.fromkeys([*changed, *chooser.sample(sites, 8)]))
            readout = TokenLogits(len(row.tokens) - 1, (33, 60))
            rows.append(replace(row, readout=readout, gradients=Gradients(DIFFERENCE, chosen)))
    with Engine(EngineLimits(threads=1, gradient_batch_tokens=60)) as engine:
        outcomes = engine.run(model, rows, job=JobTicket("job", "owner"))
    for row, outcome in zip(rows, outcomes, strict=True):
        assert_gradients_hold(model, row, outcome, logit_difference, seed=6)
        assert set(outcome.captures) == set(row.captures)


def test_a_write_of_what_is_there_already_cuts_the_way_back(
    load_tiny: LoadTiny, engine: Engine, job: JobTicket
) -> None:
    model = load_tiny("llama", torch.float64)
    above, below = Capture(Site(SiteName.RESID_MID, 1)), Capture(Site(SiteName.RESID_PRE, 1))
    same = Intervention(above.site, None, "set", FromRun(TOKENS))
    row = Row(TOKENS, (same,), readout=READ, gradients=Gradients(DIFFERENCE, (above, below)))
    (outcome,) = engine.run(model, [row], job=job)
    assert bool(outcome.gradients[above].any())
    assert float(outcome.gradients[below].abs().max()) < 1e-9


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_gradient_at_the_embedding_is_the_first_resid_pres(
    family: str, load_tiny: LoadTiny, engine: Engine, job: JobTicket
) -> None:
    model = load_tiny(family, torch.float32)
    embed, first = Capture(Site(SiteName.EMBED)), Capture(Site(SiteName.RESID_PRE, 0))
    row = Row(TOKENS, readout=READ, gradients=Gradients(DIFFERENCE, (embed, first)))
    (outcome,) = engine.run(model, [row], job=job)
    torch.testing.assert_close(outcome.gradients[embed], outcome.gradients[first])
