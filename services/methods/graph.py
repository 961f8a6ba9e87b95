"""A model as writers and readers of its residual stream, in the order in which they come.

Writers and readers come in groups that share activations: the input, the heads of a layer, its MLP, the logits. All
readers of a group see the same writers, which are the first so many; so what a group of readers is owed by a group of
writers is one block of the matrix of scores.
"""

from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt

from services.contracts.model import ModelFacts
from services.contracts.node import Reader, Writer, comes_before, readers_of, writers_of
from services.contracts.site import SiteName
from services.engine.row import Capture, Site


@dataclass(frozen=True)
class WriterGroup:
    """Writers `first` to `end` (excluded): the input, the heads of a layer, or its MLP."""

    kind: str
    layer: int
    first: int
    end: int

    @property
    def output(self) -> Capture:
        """What the group adds to the residual stream, as one activation."""
        sites = {"input": SiteName.RESID_PRE, "head": SiteName.ATTN_OUT, "mlp": SiteName.MLP_OUT}
        return Capture(Site(sites[self.kind], self.layer))

    @property
    def parts(self) -> Capture:
        """What each writer's own output is made of."""
        return Capture(Site(SiteName.Z, self.layer)) if self.kind == "head" else self.output


@dataclass(frozen=True)
class ReaderGroup:
    """Readers `first` to `end` (excluded): a layer's heads by q, k and v, its MLP, or the logits.

    They see the first `seen` writers.
    """

    kind: str
    layer: int
    first: int
    end: int
    seen: int


@dataclass(frozen=True)
class Graph:
    """A model's writers and readers, and their groups."""

    facts: ModelFacts
    writers: tuple[Writer, ...]
    readers: tuple[Reader, ...]
    writer_groups: tuple[WriterGroup, ...]
    reader_groups: tuple[ReaderGroup, ...]

    @classmethod
    def of(cls, facts: ModelFacts) -> "Graph":
        writers, readers = writers_of(facts), readers_of(facts)
        return cls(facts, writers, readers, _writer_groups(writers), _reader_groups(writers, readers, facts))

    def readers_of(self, group: WriterGroup) -> tuple[ReaderGroup, ...]:
        """The groups of readers that see all of `group`."""
        return tuple(readers for readers in self.reader_groups if readers.seen >= group.end)

    def edges(self) -> npt.NDArray[np.bool_]:
        """Whether there is an edge, [writer, reader]."""
        there = np.zeros((len(self.writers), len(self.readers)), dtype=bool)
        for group in self.reader_groups:
            there[: group.seen, group.first : group.end] = True
        return there

    def edges_per_query_head(self) -> int:
        """How many edges there are when k and v are counted once for every query head that shares them."""
        shared = self.facts.heads // self.facts.kv_heads
        times = np.array([shared if reader.via in ("k", "v") else 1 for reader in self.readers])
        return int((self.edges() * times).sum())


def _writer_groups(writers: tuple[Writer, ...]) -> tuple[WriterGroup, ...]:
    groups, first = [], 0
    for (kind, layer), members in groupby(writers, lambda writer: (writer.kind, writer.layer or 0)):
        end = first + len(list(members))
        groups.append(WriterGroup(kind, layer, first, end))
        first = end
    return tuple(groups)


def _reader_groups(
    writers: tuple[Writer, ...], readers: tuple[Reader, ...], facts: ModelFacts
) -> tuple[ReaderGroup, ...]:
    groups, first = [], 0
    for (kind, layer), members in groupby(readers, lambda reader: (reader.kind, reader.layer)):
        end = first + len(list(members))
        seen = sum(comes_before(writer, readers[first], facts) for writer in writers)
        groups.append(ReaderGroup(kind, facts.layers - 1 if layer is None else layer, first, end, seen))
        first = end
    return tuple(groups)
