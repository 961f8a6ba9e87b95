"""Rows drawn at random, many kinds at once, against one plain forward pass each."""

import random
from collections.abc import Callable, Sequence
from typing import Literal

import pytest
import torch
from torch import Tensor

from services.contracts.site import HEAD_SITES, SiteName
from services.engine.check import site_shape
from services.engine.engine import Engine, EngineLimits
from services.engine.readout import TokenLogits
from services.engine.row import Capture, FromRun, Intervention, Row, Site
from services.engine.site_work import ATTENTION_SITES
from services.engine.ticket import JobTicket
from services.models.load import LoadedModel
from tests.families import NATIVES
from tests.services.engine.conftest import LoadTiny, Plain

FAMILIES = ("gpt2", "gptj", "gpt_neox", "gemma2", "gemma3_text", "llama", "mistral", "olmo2", "opt", "granite")
KV_SITES = (SiteName.K, SiteName.V)
ROWS = 40


class Draw:
    """Draws rows that a model can run. Prompts begin alike now and then, as clean and corrupted prompts do."""

    def __init__(self, model: LoadedModel, seed: int) -> None:
        self._facts = model.facts
        self._random = random.Random(seed)
        self._generator = torch.Generator().manual_seed(seed)
        self._writable = [facts.name for facts in model.facts.sites if facts.writable]
        lengths = [self._random.randint(5, 13) for _ in range(4)]
        self._prompts = [prompt for length in lengths for prompt in self._pair(length)]

    def row(self) -> Row:
        index = self._random.randrange(len(self._prompts))
        tokens, source = self._prompts[index], self._prompts[index ^ 1]
        length = len(tokens)
        interventions = [self._intervention(length, source) for _ in range(self._random.randint(0, 3))]
        captures = {self._capture(length) for _ in range(self._random.choice((0, 0, 1, 3)))}
        readout = TokenLogits(self._random.choice((length - 1, self._random.randrange(length))), None)
        read = not captures or self._random.random() < 0.7
        return Row(tokens, tuple(interventions), tuple(captures), readout if read else None)

    def _pair(self, length: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        one, other = ([self._random.randrange(3, 320) for _ in range(length)] for _ in range(2))
        alike = self._random.randrange(length)
        return tuple(one), tuple(one[:alike] + other[alike:])

    def _site(self) -> Site:
        name = self._random.choice(self._writable)
        layer = None if name is SiteName.EMBED else self._random.randrange(self._facts.layers)
        heads = self._facts.kv_heads if name in KV_SITES else self._facts.heads
        by_head = name in HEAD_SITES and self._random.random() < 0.5
        return Site(name, layer, self._random.randrange(heads) if by_head else None)

    def _positions(self, length: int) -> tuple[int, ...] | None:
        if self._random.random() < 0.25:
            return None
        return tuple(self._random.sample(range(length), self._random.randint(1, 3)))

    def _intervention(self, length: int, source: tuple[int, ...]) -> Intervention:
        site, positions = self._site(), self._positions(length)
        count = length if positions is None else len(positions)
        shape = site_shape(self._facts, site, length)
        operation: Literal["set", "add", "scale"] = self._random.choice(("set", "add", "scale"))
        vector, block = (torch.rand(size, generator=self._generator) for size in (shape, (count, *shape)))
        value = self._random.choice((FromRun(source), FromRun(source), 0.0, 0.7, vector, block))
        if site.name is SiteName.ATTN_SCORES and operation == "scale" and isinstance(value, FromRun):
            value = 0.7  # masked scores squared overflow
        return Intervention(site, positions, operation, value)

    def _capture(self, length: int) -> Capture:
        return Capture(self._site(), self._positions(length))


def plain_changes(plain: Plain, row: Row) -> list[tuple[SiteName, int | None, Callable[[Tensor], Tensor]]]:
    return [(change.site.name, change.site.layer, plain_change(plain, change)) for change in row.interventions]


def plain_change(plain: Plain, intervention: Intervention) -> Callable[[Tensor], Tensor]:
    site, value = intervention.site, intervention.value
    donor = plain.activation(value.tokens, site.name, site.layer) if isinstance(value, FromRun) else None

    def change(activation: Tensor) -> Tensor:
        positions: Sequence[int] = intervention.positions or range(len(activation))
        for index, position in enumerate(positions):
            target = activation[position] if site.head is None else activation[position, site.head]
            if donor is not None:
                new = donor[position] if site.head is None else donor[position, site.head]
            elif isinstance(value, Tensor):
                new = value[index] if value.ndim > target.ndim else value
            else:
                new = torch.full_like(target, float(str(value)))
            match intervention.operation:
                case "set":
                    target.copy_(new)
                case "add":
                    target.add_(new)
                case "scale":
                    target.mul_(new)
        return activation

    return change


def plain_capture(plain: Plain, row: Row, capture: Capture) -> Tensor:
    taken: list[Tensor] = []

    def take(activation: Tensor) -> Tensor:
        taken.append(activation.clone())
        return activation

    plain.logits(row.tokens, *plain_changes(plain, row), (capture.site.name, capture.site.layer, take))
    positions = list(capture.positions or range(len(row.tokens)))
    found = taken[0][positions] if capture.site.head is None else taken[0][positions, capture.site.head]
    if capture.site.name is SiteName.ATTN_SCORES:
        return found.masked_fill(found < -1e30, -torch.inf)
    return found


@pytest.mark.parametrize("family", [*FAMILIES, *NATIVES])
def test_random_rows_in_shared_batches_do_what_plain_forward_passes_do(family: str, load_tiny: LoadTiny) -> None:
    model = load_tiny(family, torch.float64)
    plain, draw = Plain(model), Draw(model, seed=len(family))
    rows = [draw.row() for _ in range(ROWS)]
    with Engine(EngineLimits(threads=1, batch_tokens=100)) as engine:
        outcomes = engine.run(model, rows, job=JobTicket("job", "owner"))
    for row, outcome in zip(rows, outcomes, strict=True):
        assert outcome.execution == ("whole" if family in NATIVES else "branched")
        if isinstance(row.readout, TokenLogits):
            logits = plain.logits(row.tokens, *plain_changes(plain, row))[row.readout.position]
            torch.testing.assert_close(outcome.values(), logits.float(), rtol=1e-5, atol=1e-5, msg=f"{family} {row}")
        for capture in row.captures:
            expected = plain_capture(plain, row, capture).float()
            torch.testing.assert_close(
                outcome.captures[capture], expected, rtol=1e-5, atol=1e-5, msg=f"{family} {row} {capture}"
            )


@pytest.mark.parametrize("family", ["gpt2", "gptj", "gemma2", "llama"])
def test_a_row_reads_the_same_alone_and_in_any_batch(family: str, load_tiny: LoadTiny) -> None:
    model = load_tiny(family, torch.float32)
    draw = Draw(model, seed=1)
    rows = [row for row in (draw.row() for _ in range(ROWS)) if row.readout is not None and not _overflows(row)]
    with Engine(EngineLimits(threads=1)) as engine:
        together = engine.run(model, rows, job=JobTicket("job", "owner"))
    with Engine(EngineLimits(threads=1, batch_tokens=1, base_run_bytes=0)) as engine:
        alone = engine.run(model, rows, job=JobTicket("job", "owner"))
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one.values(), other.values(), rtol=0, atol=1e-4)


def _overflows(row: Row) -> bool:
    """Whether a masked score is added to itself: infinite in float32."""
    return any(change.site.name in ATTENTION_SITES and change.operation == "add" for change in row.interventions)
