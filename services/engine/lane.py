"""A row in a batch, and how unpatched runs are named."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from services.contracts.site import SiteName
from services.engine.past import Past
from services.engine.row import Row, Site

Place = tuple[SiteName, int | None]


class RunKey(NamedTuple):
    """An unpatched run: whose it is, and of which tokens. Tenants never share one."""

    owner: str
    tokens: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Lane:
    """A row in a batch.

    Its first slot stands for absolute position `start`, and it enters the batch before block `join`. A `grafted` lane
    takes what lies before from its own tokens' unpatched run, which its interventions there do not change; one that is
    not starts from its tokens, at 0 and 0. A step of a continuation starts from its tokens too, where its `past` ends.
    """

    row: Row
    owner: str
    start: int = 0
    join: int = 0
    grafted: bool = False
    past: Past | None = None

    @property
    def trunk(self) -> RunKey:
        """The unpatched run of the row's own tokens."""
        return RunKey(self.owner, self.row.tokens)

    @property
    def reach(self) -> int:
        """Positions from `start` to the row's end."""
        return len(self.row.tokens) - self.start

    def slots(self, positions: tuple[int, ...] | None) -> Sequence[int]:
        """Where `positions` lie in the lane; those before its start are negative."""
        return [position - self.start for position in (range(len(self.row.tokens)) if positions is None else positions)]

    def joins_after(self, site: Site) -> bool:
        """Whether the lane enters the batch only behind this site."""
        return joining_layer(site) < self.join


def joining_layer(site: Site) -> int:
    """The block before which a lane must have joined to do anything at `site`."""
    if site.layer is None:
        return 0
    return site.layer + 1 if site.name is SiteName.RESID_POST else site.layer


def padded(
    rows: Sequence[tuple[int, ...]], device: torch.device, length: int | None = None
) -> Int[Tensor, "row position"]:
    """Rows of tokens as one tensor, padded on the right with a token that nobody looks at."""
    width = length or max(map(len, rows))
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
