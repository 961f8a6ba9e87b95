"""A row in a batch, and how unpatched runs are named."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from services.contracts.site import SiteName
from services.engine.row import Row

Place = tuple[SiteName, int | None]


class RunKey(NamedTuple):
    """An unpatched run: whose it is, and of which tokens. Tenants never share one."""

    owner: str
    tokens: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Lane:
    """A row in a batch.

    Its first slot stands for absolute position `start`, and it enters the batch before block `join`. A `grafted` lane
    takes what lies before from its own tokens' unpatched run; one that is not starts from its tokens, at 0 and 0.
    """

    row: Row
    owner: str
    start: int = 0
    join: int = 0
    grafted: bool = False

    @property
    def trunk(self) -> RunKey:
        """The unpatched run of the row's own tokens."""
        return RunKey(self.owner, self.row.tokens)

    @property
    def reach(self) -> int:
        """Positions from `start` to the row's end."""
        return len(self.row.tokens) - self.start

    def slots(self, positions: tuple[int, ...] | None) -> Sequence[int]:
        if positions is None:
            return range(self.reach)
        return [position - self.start for position in positions]


def padded(
    rows: Sequence[tuple[int, ...]], device: torch.device, length: int | None = None
) -> Int[Tensor, "row position"]:
    """Rows of tokens as one tensor, padded on the right with a token that nobody looks at."""
    width = length or max(map(len, rows))
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
