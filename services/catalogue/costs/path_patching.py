"""What path patching costs: two unpatched runs a pair, and per sender a run to its receivers and one on from them.

The first goes from the sender's layer and the first position that differs to the last receiver, the second from the
first receiver to the end. `logits` are read in the first.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.contracts.inputs import TokenizedPair
from services.contracts.model import ModelFacts
from services.contracts.node import Reader, Writer, comes_before
from services.contracts.path_patching import PathPatching
from services.contracts.sweep import SweptPosition, index_of


@dataclass(frozen=True)
class _Way:
    """What the runs of a sender share with those of others: where it is, and the layers of the receivers behind it."""

    is_input: bool
    layer: int
    lowest: int | None
    highest: int | None


def path_patching_work(method: PathPatching, pairs: Sequence[TokenizedPair], model: ModelFacts) -> int:
    """Token-layers of all pairs. The unpatched runs count 1 each beside their own work, once more with every step.

    Summed up over senders and positions, of which a small body can name millions.
    """
    readers = method.readers()
    ways = Counter(_way(writer, readers, model) for writer in method.writers(model))
    positions: Mapping[SweptPosition | None, int] = Counter(method.positions or (None,))
    steps = 1 if readers == (Reader("logits"),) else 2
    total = 0
    for pair in pairs:
        total += 2 * (len(pair.clean.ids) * model.layers + 1)
        patched = _patched(method, pair, positions, ways, model)
        total += patched + (steps if patched else 0)
    return total


def _way(writer: Writer, readers: Sequence[Reader], model: ModelFacts) -> _Way:
    after = [reader.layer for reader in readers if comes_before(writer, reader, model)]
    layers = [layer for layer in after if layer is not None]
    return _Way(writer.kind == "input", writer.layer or 0, min(layers, default=None), max(layers, default=None))


def _patched(
    method: PathPatching,
    pair: TokenizedPair,
    positions: Mapping[SweptPosition | None, int],
    ways: Mapping[_Way, int],
    model: ModelFacts,
) -> int:
    """The work of one pair's patched runs: for each sender, at each position at which its output differs."""
    length = len(pair.clean.ids)
    chosen = method.receiver_positions
    read_at = range(length) if chosen is None else sorted({index_of(position, pair) for position in chosen})
    read = length if pair.metric_position is None else pair.metric_position
    rows = from_first = from_read = onward = 0
    for position, count in positions.items():
        first = _first_change(pair, position)
        if first is None or first > read_at[-1]:
            continue
        rows += count
        from_first += count * (length - first)
        from_read += count * (length - min(first, read))
        onward += count * (length - min(read_at[bisect_left(read_at, first)], read))
    total = 0
    for way, senders in ways.items():
        if way.lowest is None or way.highest is None:
            reach = rows * length if way.is_input else from_read
            total += senders * reach * (model.layers - way.layer)
        else:
            reach = rows * length if way.is_input else from_first
            total += senders * (reach * (way.highest + 1 - way.layer) + onward * (model.layers - way.lowest))
    return total


def _first_change(pair: TokenizedPair, position: int | str | None) -> int | None:
    """The first position at which the sender's output differs between the two runs; None for nowhere."""
    first = min(pair.differing, default=None)
    if first is None or position is None:
        return first
    at = index_of(position, pair)
    return at if at >= first else None
