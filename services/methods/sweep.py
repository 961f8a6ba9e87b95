"""The cells of a sweep: one patched or ablated run each."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from services.contracts import sweep as contract
from services.contracts.model import ModelFacts
from services.contracts.site import SiteName
from services.engine.row import Site

ROWS_AT_ONCE = 8_192
"""Prompts are run together up to about this many rows, so that a job's memory does not grow with them."""


@dataclass(frozen=True)
class Cell:
    """One site, at one position or (None) at all that the sweep changes together."""

    site: Site
    position: int | str | None


@dataclass(frozen=True)
class Sweep:
    """The cells of a sweep, in row-major order of its axes."""

    site: SiteName
    layers: tuple[int, ...] | None
    heads: tuple[int, ...] | None
    positions: tuple[int | str, ...] | None

    @property
    def dims(self) -> tuple[str, ...]:
        axes = (("layer", self.layers), ("head", self.heads), ("position", self.positions))
        return tuple(name for name, values in axes if values is not None)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(values) for values in (self.layers, self.heads, self.positions) if values is not None)

    @property
    def size(self) -> int:
        return prod(self.shape)

    def cells(self) -> Iterator[Cell]:
        for layer in self.layers or (None,):
            for head in self.heads or (None,):
                for position in self.positions or (None,):
                    yield Cell(Site(self.site, layer, head), position)


def sweep_of(method: contract.Sweep, facts: ModelFacts, length: int) -> Sweep:
    """What `method` sweeps in a model, over prompts of `length` tokens where positions are swept."""
    return Sweep(
        site=SiteName(method.site),
        layers=method.swept_layers(facts),
        heads=method.swept_heads(facts),
        positions=method.swept_positions(length),
    )
