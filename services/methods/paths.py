"""The paths of path patching as changes to a run: what a sender's row sets and keeps, what is taken at receivers."""

from collections.abc import Iterator
from dataclasses import dataclass

from services.contracts.inputs import TokenizedPair
from services.contracts.model import ModelFacts
from services.contracts.node import Reader, Writer, comes_before
from services.contracts.path_patching import PathPatching, site_of
from services.contracts.site import SiteName
from services.contracts.sweep import index_of
from services.engine.row import Capture, FromRun, Intervention, Row, Site
from services.methods.metric import Measure

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class PairAtWork:
    """One pair in its mode: activations go from the run of `source` into that of `target`."""

    tokens: TokenizedPair
    measured: Measure
    target: Tokens
    source: Tokens


@dataclass(frozen=True, eq=False)
class Path:
    """One sender's paths to all receivers after it, in one pair and one cell of its effects, by their numbers.

    `interventions` make its row; `captures` take what the receivers make of their input there, none for `logits`.
    """

    pair: int
    cell: int
    interventions: tuple[Intervention, ...]
    captures: tuple[Capture, ...]


class Paths:
    """All paths that a specification names in one model."""

    def __init__(self, method: PathPatching, facts: ModelFacts) -> None:
        self._method, self._facts = method, facts
        self._readers = method.readers()
        self._positions = method.positions or (None,)
        self.direct = self._readers == (Reader("logits"),)
        self.senders = method.writers(facts)
        self.dims = ("sender",) if method.positions is None else ("sender", "position")
        self.shape = (len(self.senders), len(self._positions))[: len(self.dims)]

    def of(self, index: int, pair: PairAtWork) -> Iterator[Path]:
        """The paths of one pair along which something comes: prompts that begin alike are alike so far."""
        cell = 0
        for sender in self.senders:
            receivers = [reader for reader in self._readers if comes_before(sender, reader, self._facts)]
            layers = [reader.layer for reader in receivers if reader.layer is not None]
            kept = tuple(self._kept(sender, max(layers, default=self._facts.layers - 1)))
            for position in self._positions:
                positions, first = self._changed(position, pair.tokens)
                captures = tuple(self._captures(receivers, first, pair.tokens))
                if first < len(pair.target) and (captures or self.direct):
                    patch = Intervention(_site(sender), positions, "set", FromRun(pair.source))
                    freeze = (Intervention(site, None, "set", FromRun(pair.target)) for site in kept)
                    yield Path(index, cell, (patch, *freeze), captures)
                cell += 1

    def unpatched(self, pair: PairAtWork) -> tuple[Row, Row]:
        """The target and the source run, with every activation that a path takes from them set to what it is: so the
        engine computes each run once, knowing all that is needed of it."""
        last = self._facts.layers - 1
        kept = {site for sender in self.senders for site in self._kept(sender, last)}
        sent = {_site(sender, whole=True) for sender in self.senders}
        target, source = (
            Row(
                tokens,
                tuple(Intervention(site, None, "set", FromRun(tokens)) for site in sorted(sites, key=str)),
                readout=pair.measured.readout,
            )
            for tokens, sites in ((pair.target, kept), (pair.source, sent))
        )
        return target, source

    def _kept(self, sender: Writer, last: int) -> Iterator[Site]:
        """What keeps its own value up to the receivers: the heads of the layers behind the sender, and the MLPs."""
        behind = 0 if sender.layer is None else sender.layer + 1
        for layer in range(behind, last + 1):
            yield Site(SiteName.Z, layer)
        if self._method.freeze_mlps and self._facts.d_mlp:
            own = 1 if sender.kind == "head" else 0
            for layer in range(behind - own, last + 1):
                yield Site(SiteName.MLP_OUT, layer)

    def _changed(self, position: int | str | None, pair: TokenizedPair) -> tuple[tuple[int, ...] | None, int]:
        """The sender's positions, and the first at which its output differs; the prompt's length for none."""
        length = len(pair.clean.ids)
        differs = min(pair.differing, default=length)
        if position is None:
            return None, differs
        at = index_of(position, pair)
        return (at,), at if at >= differs else length

    def _captures(self, receivers: list[Reader], first: int, pair: TokenizedPair) -> Iterator[Capture]:
        """What the receivers make of their input from position `first` on."""
        chosen = self._method.receiver_positions
        everywhere = range(len(pair.clean.ids))
        at = everywhere if chosen is None else sorted({index_of(position, pair) for position in chosen})
        positions = tuple(position for position in at if position >= first)
        if positions and not self.direct:
            for reader in receivers:
                yield Capture(Site(site_of(reader), reader.layer, reader.head), positions)


def _site(sender: Writer, *, whole: bool = False) -> Site:
    """Where a sender's output is; `whole` for that of all heads."""
    return Site(site_of(sender), sender.layer, None if whole else sender.head)
