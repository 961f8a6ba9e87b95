"""The parts of a model as a graph, and the names that the field gives them: `input`, `a9.h6`, `m3`, `logits`.

Every part adds its output to the residual stream, and every part reads the sum of what is there by then. So a writer
has an edge to each reader that it comes before, whose name is `a9.h6->a10.h0<q>`:

    writer    input       the embedding
              a9.h6       head 6 of layer 9, what it adds to the residual stream
              m3          the MLP of layer 3
    reader    a10.h0<q>   what head 0 of layer 10 makes its queries of; likewise `<k>` and `<v>`, by KV head
              m3          what the MLP of layer 3 reads
              logits      the final residual stream, at the input of the final norm

Within a layer, heads come before the MLP, except in parallel blocks, where both read the same residual stream.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from services.contracts.errors import ErrorCode, Violation
from services.contracts.model import ModelFacts

HeadInput = Literal["q", "k", "v"]

NodeName = Annotated[str, Field(min_length=1, max_length=32, examples=["a9.h6", "m3"])]
"""A writer's or a reader's name as a client sends it; `Writer.parse` and `Reader.parse` say whether it is one."""

_INDEX = r"(0|[1-9][0-9]{0,3})"
_HEAD = re.compile(rf"a{_INDEX}\.h{_INDEX}")
_HEAD_INPUT = re.compile(rf"a{_INDEX}\.h{_INDEX}<([qkv])>")
_MLP = re.compile(rf"m{_INDEX}")
_ARROW = "->"


@dataclass(frozen=True)
class Writer:
    """A part that adds to the residual stream; `layer` is None for the input alone, `head` is given for heads alone."""

    kind: Literal["input", "head", "mlp"]
    layer: int | None = None
    head: int | None = None

    @classmethod
    def parse(cls, name: str) -> "Writer":
        """The writer called `name`; raises ValueError with a sentence."""
        if name == "input":
            return cls("input")
        if match := _HEAD.fullmatch(name):
            return cls("head", int(match[1]), int(match[2]))
        if match := _MLP.fullmatch(name):
            return cls("mlp", int(match[1]))
        raise ValueError(f"{name!r} does not name a part that writes: they are called input, a9.h6 (a head) and m3")

    def __str__(self) -> str:
        match self.kind:
            case "input":
                return "input"
            case "head":
                return f"a{self.layer}.h{self.head}"
            case "mlp":
                return f"m{self.layer}"


@dataclass(frozen=True)
class Reader:
    """A part that reads the residual stream; `head` counts KV heads where `via` is k or v."""

    kind: Literal["head", "mlp", "logits"]
    layer: int | None = None
    head: int | None = None
    via: HeadInput | None = None

    @classmethod
    def parse(cls, name: str) -> "Reader":
        """The reader called `name`; raises ValueError with a sentence."""
        if name == "logits":
            return cls("logits")
        if match := _HEAD_INPUT.fullmatch(name):
            via: HeadInput = "q" if match[3] == "q" else "k" if match[3] == "k" else "v"
            return cls("head", int(match[1]), int(match[2]), via)
        if match := _MLP.fullmatch(name):
            return cls("mlp", int(match[1]))
        if _HEAD.fullmatch(name):
            raise ValueError(f"{name!r} reads by its q, k and v: say which, as {name}<q>, {name}<k> or {name}<v>")
        raise ValueError(f"{name!r} does not name a part that reads: they are called a10.h0<q>, m3 and logits")

    def __str__(self) -> str:
        match self.kind:
            case "head":
                return f"a{self.layer}.h{self.head}<{self.via}>"
            case "mlp":
                return f"m{self.layer}"
            case "logits":
                return "logits"


@dataclass(frozen=True)
class Edge:
    """What one writer adds to what one reader reads."""

    writer: Writer
    reader: Reader

    @classmethod
    def parse(cls, name: str) -> "Edge":
        """The edge called `name`; raises ValueError with a sentence."""
        writer, arrow, reader = name.partition(_ARROW)
        if not arrow:
            raise ValueError(f"{name!r} does not name an edge: they are called a9.h6->a10.h0<q>")
        return cls(Writer.parse(writer), Reader.parse(reader))

    def __str__(self) -> str:
        return f"{self.writer}{_ARROW}{self.reader}"


def comes_before(writer: Writer, reader: Reader, facts: ModelFacts) -> bool:
    """Whether `reader` reads a residual stream that `writer` has added to: whether there is an edge."""
    if writer.layer is None or reader.layer is None:
        return True
    if writer.layer == reader.layer:
        return writer.kind == "head" and reader.kind == "mlp" and not facts.parallel_blocks
    return writer.layer < reader.layer


def writers_of(facts: ModelFacts) -> tuple[Writer, ...]:
    """All writers: the input, then by layer its heads and its MLP."""
    return Writer("input"), *(writer for layer in range(facts.layers) for writer in _writers(layer, facts))


def readers_of(facts: ModelFacts) -> tuple[Reader, ...]:
    """All readers: by layer the heads' q, the KV heads' k and v, and the MLP; then the logits."""
    return *(reader for layer in range(facts.layers) for reader in _readers(layer, facts)), Reader("logits")


def node_violations(node: Writer | Reader, facts: ModelFacts, pointer: str) -> Iterator[Violation]:
    """What keeps this model from having `node`: a layer, a head or an MLP that does not exist."""
    if node.layer is not None and node.layer >= facts.layers:
        message = f"{node} does not exist: {facts.id} has layers 0..{facts.layers - 1}"
        yield Violation(pointer, ErrorCode.UNKNOWN_LAYER, message)
    elif node.kind == "mlp" and not facts.d_mlp:
        message = f"{node} does not exist: {facts.id} is attention alone, name heads"
        yield Violation(pointer, ErrorCode.UNKNOWN_SITE, message)
    shared = isinstance(node, Reader) and node.via in ("k", "v")
    heads = facts.kv_heads if shared else facts.heads
    if node.head is not None and node.head >= heads:
        kind = "KV heads" if shared else "heads"
        message = f"{node} does not exist: {facts.id} has {kind} 0..{heads - 1} in every layer"
        yield Violation(pointer, ErrorCode.UNKNOWN_HEAD, message)


def _writers(layer: int, facts: ModelFacts) -> Iterator[Writer]:
    for head in range(facts.heads):
        yield Writer("head", layer, head)
    if facts.d_mlp:
        yield Writer("mlp", layer)


def _readers(layer: int, facts: ModelFacts) -> Iterator[Reader]:
    inputs: tuple[tuple[HeadInput, int], ...] = (("q", facts.heads), ("k", facts.kv_heads), ("v", facts.kv_heads))
    for via, heads in inputs:
        for head in range(heads):
            yield Reader("head", layer, head, via)
    if facts.d_mlp:
        yield Reader("mlp", layer)
