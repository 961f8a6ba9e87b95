"""`path_patching`: which parts act on which others directly, not by way of other heads (Wang et al. 2022)."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from services.contracts.base import Request
from services.contracts.errors import ErrorCode, Violation
from services.contracts.inputs import Inputs
from services.contracts.model import ModelFacts
from services.contracts.node import NodeName, Reader, Writer, comes_before, node_violations, writers_of
from services.contracts.place import site_violations
from services.contracts.site import SiteName
from services.contracts.sweep import SweptPosition, position_violations

_LOGITS = Reader("logits")
_SITE_OF_INPUT = {"q": SiteName.Q, "k": SiteName.K, "v": SiteName.V}
_SITE_OF_WRITER = {"input": SiteName.EMBED, "head": SiteName.Z, "mlp": SiteName.MLP_OUT}


class PathPatching(Request):
    """Patch the direct paths from one sender at a time to all receivers together.

    The sender's output becomes the other run's, every other head keeps its own, MLPs in between are recomputed unless
    `freeze_mlps`; what the receivers then read is put into a run in which everything after them is recomputed. Senders
    are heads (`a9.h6`), MLPs (`m3`) and `input`; null means all heads and MLPs before some receiver. Receivers are
    heads' queries, keys and values (`a9.h6<q>`; k and v by KV head), MLPs, or `logits` alone. `positions` are the
    senders', one at a time; null patches all at once. `denoising` patches clean into corrupted, `noising` the reverse.
    """

    type: Literal["path_patching"]
    mode: Literal["denoising", "noising"] = "denoising"
    senders: Annotated[tuple[NodeName, ...] | None, Field(min_length=1, max_length=10_000)] = None
    receivers: Annotated[tuple[NodeName, ...], Field(min_length=1, max_length=10_000)]
    positions: Annotated[tuple[SweptPosition, ...] | None, Field(min_length=1, max_length=4_096)] = None
    receiver_positions: Annotated[
        tuple[SweptPosition, ...] | None,
        Field(min_length=1, max_length=4_096, description="Where the receivers are patched; null is everywhere."),
    ] = None
    freeze_mlps: Annotated[bool, Field(description="MLPs between sender and receivers keep their own output.")] = False

    def readers(self) -> tuple[Reader, ...]:
        """The receivers; raises ValueError for a name that is none."""
        return tuple(Reader.parse(name) for name in self.receivers)

    def writers(self, facts: ModelFacts) -> tuple[Writer, ...]:
        """The senders; raises ValueError for a name that is none."""
        if self.senders is not None:
            return tuple(Writer.parse(name) for name in self.senders)
        readers = self.readers()
        writers = (writer for writer in writers_of(facts) if writer.kind != "input")
        return tuple(writer for writer in writers if any(comes_before(writer, reader, facts) for reader in readers))

    def violations(self, facts: ModelFacts, pointer: str) -> Iterator[Violation]:
        """Names that name nothing here, senders that no receiver reads, sites that this model cannot write."""
        refused = [
            *_name_violations(Reader, self.receivers, facts, f"{pointer}/receivers"),
            *_name_violations(Writer, self.senders or (), facts, f"{pointer}/senders"),
        ]
        yield from refused
        if refused:
            return
        readers, writers = self.readers(), self.writers(facts)
        if _LOGITS in readers:
            yield from self._logits_violations(pointer)
        for index, sender in enumerate(writers):
            if not any(comes_before(sender, reader, facts) for reader in readers):
                message = f"{sender} comes before none of the receivers, so no path leads from it to them: leave it out"
                yield Violation(f"{pointer}/senders/{index}", ErrorCode.INVALID_REQUEST, message)
        if not writers:
            message = "no head or MLP comes before these receivers: send `input`"
            yield Violation(f"{pointer}/senders", ErrorCode.INVALID_REQUEST, message)
        for site, field in self._sites(facts).items():
            yield from site_violations(site, facts, f"{pointer}/{field}", write=True)

    def input_violations(self, inputs: Inputs) -> Iterator[Violation]:
        """Positions that some pair lacks."""
        for name, positions in (("positions", self.positions), ("receiver_positions", self.receiver_positions)):
            yield from position_violations(positions, inputs.pairs, f"/method/{name}", every=False)

    def _logits_violations(self, pointer: str) -> Iterator[Violation]:
        if len(self.receivers) > 1:
            message = "logits are read last, what they read hides every other receiver: ask for them in a job alone"
            yield Violation(f"{pointer}/receivers", ErrorCode.INVALID_REQUEST, message)
        if self.receiver_positions is not None:
            message = "logits are read where the metric is: leave `receiver_positions` out"
            yield Violation(f"{pointer}/receiver_positions", ErrorCode.INVALID_REQUEST, message)

    def _sites(self, facts: ModelFacts) -> dict[SiteName, str]:
        """Everything that is written, by the field that asks for it: what is kept, the senders' outputs, what the
        receivers make of their input."""
        sites = {SiteName.MLP_OUT: "freeze_mlps"} if self.freeze_mlps and facts.d_mlp else {}
        sites |= {site_of(writer): "senders" for writer in self.writers(facts)} | {SiteName.Z: "type"}
        return sites | {site_of(reader): "receivers" for reader in self.readers() if reader.kind != "logits"}


def site_of(node: Writer | Reader) -> SiteName:
    """Where a sender's output, or what a receiver makes of its input, is patched. MLPs receive at their neurons: these
    depend on what the MLP reads alone, and nothing but what it writes depends on them."""
    if isinstance(node, Writer):
        return _SITE_OF_WRITER[node.kind]
    return SiteName.MLP_POST if node.via is None else _SITE_OF_INPUT[node.via]


def _name_violations(
    parts: type[Writer] | type[Reader], names: tuple[str, ...], facts: ModelFacts, pointer: str
) -> Iterator[Violation]:
    seen: set[str] = set()
    for index, name in enumerate(names):
        try:
            node = parts.parse(name)
        except ValueError as error:
            yield Violation(f"{pointer}/{index}", ErrorCode.INVALID_REQUEST, str(error))
            continue
        yield from node_violations(node, facts, f"{pointer}/{index}")
        if name in seen:
            yield Violation(f"{pointer}/{index}", ErrorCode.INVALID_REQUEST, f"{name} is named twice: name it once")
        seen.add(name)
