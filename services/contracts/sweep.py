"""A sweep of one site: one cell per patched or ablated run."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import Field

from services.contracts.base import Head, Layer, Position, Request
from services.contracts.errors import ErrorCode, Violation
from services.contracts.inputs import TokenizedPair
from services.contracts.model import ModelFacts
from services.contracts.place import head_violations, heads_of, layer_violations, site_violations
from services.contracts.prompt import PositionName
from services.contracts.site import HEAD_SITES

SweptPosition = Position | PositionName
SweptSite = Literal[
    "embed",
    "resid_pre",
    "resid_mid",
    "resid_post",
    "attn_out",
    "mlp_out",
    "mlp_post",
    "q",
    "k",
    "v",
    "z",
    "attn_scores",
    "pattern",
]


class Sweep(Request):
    """Which cells: sites of the residual stream and of whole layers go over layers × positions (`embed` over positions
    alone). Sites with heads go over layers × heads, each head changed at all positions at once; with `positions`, over
    layers × heads × those positions. `k` and `v` have the model's KV heads. Omitted lists mean all.
    """

    site: SweptSite
    layers: Annotated[tuple[Layer, ...] | None, Field(min_length=1, max_length=1_000)] = None
    heads: Annotated[tuple[Head, ...] | None, Field(min_length=1, max_length=1_000)] = None
    positions: Annotated[
        tuple[SweptPosition, ...] | None,
        Field(min_length=1, max_length=4_096, description="Indices, or names that every pair defines."),
    ] = None

    def violations(self, facts: ModelFacts, pointer: str) -> Iterator[Violation]:
        """Layers and heads that do not exist, a site that this model cannot write."""
        yield from layer_violations(self.layers or (), facts, f"{pointer}/layers")
        if self.layers is not None and self.site == "embed":
            message = "embed comes before the layers: leave `layers` out"
            yield Violation(f"{pointer}/layers", ErrorCode.UNKNOWN_LAYER, message)
        if self.heads is not None:
            yield from head_violations(self.heads, self.site, facts, f"{pointer}/heads")
        yield from site_violations(self.site, facts, f"{pointer}/site", write=True)

    def swept_layers(self, facts: ModelFacts) -> tuple[int, ...] | None:
        """The layers of its cells; None for `embed`."""
        return None if self.site == "embed" else self.layers or tuple(range(facts.layers))

    def swept_heads(self, facts: ModelFacts) -> tuple[int, ...] | None:
        """The heads of its cells; None for sites without."""
        heads = heads_of(self.site, facts)
        return (self.heads or tuple(range(heads))) if heads else None

    def swept_positions(self, length: int) -> tuple[int | str, ...] | None:
        """The positions of its cells; None where each changes all positions at once."""
        if self.positions is not None or self.site in HEAD_SITES:
            return self.positions
        return tuple(range(length))


def position_violations(
    positions: Sequence[SweptPosition] | None, pairs: Sequence[TokenizedPair], pointer: str, *, every: bool
) -> Iterator[Violation]:
    """Positions that some pair lacks; with `every` and none given, pairs whose positions do not correspond."""
    shortest = min(len(pair.clean.ids) for pair in pairs)
    longest = max(len(pair.clean.ids) for pair in pairs)
    if positions is None and every and shortest != longest:
        message = (
            f"the pairs have between {shortest} and {longest} tokens, so their positions do not correspond: "
            "name positions in every pair and list those names here, or send one job per length"
        )
        yield Violation(pointer, ErrorCode.UNEQUAL_LENGTHS, message)
    # Each name is looked for once: a small body can repeat one thousands of times, for a thousand pairs.
    names = {position for position in positions or () if isinstance(position, str)}
    first_without = {
        name: next((number for number, pair in enumerate(pairs) if name not in pair.positions), None) for name in names
    }
    for index, position in enumerate(positions or ()):
        if isinstance(position, str):
            lacking = first_without[position]
            if lacking is not None:
                message = f"no position is called {position!r} in pair {lacking}: name it in its `positions`"
                yield Violation(f"{pointer}/{index}", ErrorCode.UNKNOWN_POSITION, message)
        elif not -shortest <= position < shortest:
            message = f"position {position} does not exist in a prompt of {shortest} tokens: 0..{shortest - 1}"
            yield Violation(f"{pointer}/{index}", ErrorCode.UNKNOWN_POSITION, message)


def index_of(position: SweptPosition, pair: TokenizedPair) -> int:
    """A swept position as an index into a pair's tokens."""
    return pair.positions[position] if isinstance(position, str) else position % len(pair.clean.ids)
