"""What path patching costs: two unpatched runs a pair, and per sender a run to its receivers and one on from them.

The first goes from the sender's layer and the first position that differs to the last receiver, the second from the
first receiver to the end. `logits` are read in the first.
"""

from collections.abc import Iterator, Sequence

from services.contracts.inputs import TokenizedPair
from services.contracts.model import ModelFacts
from services.contracts.node import Reader, Writer, comes_before
from services.contracts.path_patching import PathPatching
from services.contracts.sweep import index_of


def path_patching_work(method: PathPatching, pairs: Sequence[TokenizedPair], model: ModelFacts) -> int:
    """Token-layers of all pairs. The unpatched runs count 1 each beside their own work, once more with every step."""
    readers, writers = method.readers(), method.writers(model)
    steps = 1 if readers == (Reader("logits"),) else 2
    total = 0
    for pair in pairs:
        total += 2 * (len(pair.clean.ids) * model.layers + 1)
        cells = [cell for writer in writers for cell in _cells(method, writer, readers, pair, model)]
        total += sum(cells) + (steps if cells else 0)
    return total


def _cells(
    method: PathPatching, writer: Writer, readers: Sequence[Reader], pair: TokenizedPair, model: ModelFacts
) -> Iterator[int]:
    """The work for each of the sender's positions at which its output differs."""
    length = len(pair.clean.ids)
    chosen = method.receiver_positions
    read_at = range(length) if chosen is None else sorted({index_of(position, pair) for position in chosen})
    after = [reader for reader in readers if comes_before(writer, reader, model)]
    layers = [reader.layer for reader in after if reader.layer is not None]
    for position in method.positions or (None,):
        first = _first_change(pair, position)
        later = [at for at in read_at if first is not None and at >= first]
        if first is None or not later:
            continue
        read = length if pair.metric_position is None else pair.metric_position
        start = 0 if writer.kind == "input" else first if layers else min(first, read)
        depth = (max(layers) + 1 if layers else model.layers) - (writer.layer or 0)
        onward = (length - min(later[0], read)) * (model.layers - min(layers)) if layers else 0
        yield (length - start) * depth + onward


def _first_change(pair: TokenizedPair, position: int | str | None) -> int | None:
    """The first position at which the sender's output differs between the two runs; None for nowhere."""
    first = min(pair.differing, default=None)
    if first is None or position is None:
        return first
    at = index_of(position, pair)
    return at if at >= first else None
