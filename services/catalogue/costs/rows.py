"""What rows cost the engine, by the rule that its planner follows.

1. A row is computed from the lowest layer and the first position on that it changes or captures.
2. What lies before comes from its own tokens' unpatched run, where the rows that share it save more than it costs.
3. Every unpatched run is computed once: those, and those whose activations others take.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from services.contracts.site import SiteName

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Touch:
    """The first position at which a row changes or captures something at a site."""

    site: SiteName
    layer: int | None
    position: int

    @property
    def join(self) -> int:
        """The block before which the row has to be computed."""
        if self.layer is None:
            return 0
        return self.layer + 1 if self.site is SiteName.RESID_POST else self.layer


@dataclass(frozen=True)
class PlannedRow:
    """`reads_at` is the position of its readout (None for a loss, or without one); it goes through `depth` blocks."""

    tokens: Tokens
    depth: int
    touches: tuple[Touch, ...] = ()
    reads_at: int | None = None

    @property
    def whole(self) -> int:
        """Its cost from its tokens on."""
        return len(self.tokens) * self.depth

    @property
    def branched(self) -> int:
        """Its cost on its unpatched run; as a whole where the embedding is touched."""
        if any(touch.site is SiteName.EMBED for touch in self.touches):
            return self.whole
        positions = [touch.position for touch in self.touches]
        if self.reads_at is not None:
            positions.append(self.reads_at)
        start = min(positions, default=len(self.tokens) - 1)
        join = min((touch.join for touch in self.touches), default=self.depth)
        return (len(self.tokens) - start) * max(0, self.depth - join)

    @property
    def billed_whole(self) -> int:
        return max(1, self.whole)

    @property
    def billed_branched(self) -> int:
        return max(1, self.branched)


@dataclass(frozen=True)
class PlannedSweep:
    """Rows of one prompt, `times` for each of `layers` × `starts`: summed up, since a small body can ask for millions.

    `starts` are the first positions that they change at the site, each with its number of rows.
    """

    tokens: Tokens
    depth: int
    site: SiteName
    layers: Sequence[int | None]
    starts: Mapping[int, int]
    reads_at: int | None
    times: int = 1

    @property
    def whole(self) -> int:
        return self._rows * len(self.tokens) * self.depth

    @property
    def branched(self) -> int:
        if self.site is SiteName.EMBED:
            return self.whole
        last = len(self.tokens) if self.reads_at is None else self.reads_at
        reach = sum(count * (len(self.tokens) - min(start, last)) for start, count in self.starts.items())
        return self.times * reach * sum(self._depths)

    @property
    def billed_whole(self) -> int:
        return max(self._rows, self.whole)

    @property
    def billed_branched(self) -> int:
        if self.site is SiteName.EMBED:
            return self.billed_whole
        return self.branched + self.times * sum(self.starts.values()) * self._depths.count(0)

    @property
    def _rows(self) -> int:
        return self.times * len(self.layers) * sum(self.starts.values())

    @cached_property
    def _depths(self) -> list[int]:
        """The blocks that a row of each layer goes through on its unpatched run."""
        return [max(0, self.depth - Touch(self.site, layer, 0).join) for layer in self.layers]


def work(rows: Iterable[PlannedRow | PlannedSweep], layers: int, runs: Iterable[Tokens] = ()) -> int:
    """Token-layers of `rows`, submitted together, and of the unpatched `runs` whose activations they take."""
    sharing: dict[Tokens, list[PlannedRow | PlannedSweep]] = defaultdict(list)
    for row in rows:
        sharing[row.tokens].append(row)
    needed = set(runs)
    total = 0
    for tokens, together in sharing.items():
        saved = sum(row.whole - row.branched for row in together)
        branched = saved >= len(tokens) * layers
        total += sum(row.billed_branched if branched else row.billed_whole for row in together)
        if branched:
            needed.add(tokens)
    return total + layers * sum(map(len, needed))


def first_difference(one: Tokens, other: Tokens) -> int:
    """Where two prompts stop being the same: before it, so are all their activations."""
    return next((index for index, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))
