"""Edges by brute force: plain transformers in float64, and for every edge what the metric gains when only its
reader sees a little more of what its writer changes.

A reader's input is changed where the family's own modules read it: before the MLP's or the final norm, and for q, k and
v in the projection's output, by what the projection makes of the changed input less what it makes of the true one.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from services.contracts.node import Edge, Reader, Writer
from services.contracts.result import PairTokens
from tests.brute_force import Place, Reference
from tests.services.methods.conftest import Laboratory

STEP = 0.01
"""Of a writer's difference."""

Stream = Float64[Tensor, "position d_model"]
Set = Mapping[Place, Stream]
"""Activations that a run's sites are set to."""

_MODERN = ("input_layernorm", "post_attention_layernorm", ("q_proj", "k_proj", "v_proj"))
_LAYOUTS: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "llama": _MODERN,
    "gemma2": ("input_layernorm", "pre_feedforward_layernorm", ("q_proj", "k_proj", "v_proj")),
    "gpt2": ("ln_1", "ln_2", ("c_attn",)),
    "gpt_neox": ("input_layernorm", "post_attention_layernorm", ("query_key_value",)),
}
"""Attention's norm, the MLP's norm, and the projections to q, k and v, together or apart."""


class EdgeReference:
    """One pair on one plain model; the metric is the logit difference at the last position."""

    def __init__(self, laboratory: Laboratory, model: str, tokens: PairTokens) -> None:
        self.reference = Reference(laboratory.folder(model))
        self.family = self.reference.model.config.model_type
        tokenizer = laboratory.catalogue.tokenizer(model)
        self.answers = [tokenizer.read(name, bos=False).ids[0] for name in (" Mary", " John")]
        self.clean_ids = tokens.clean.ids
        layers = range(len(self.reference.blocks))
        places = [("resid_pre", 0), *((site, layer) for layer in layers for site in ("z", "attn_out", "mlp_out"))]
        self.clean, self.corrupted = (
            self.reference.activations(ids, places) for ids in (tokens.clean.ids, tokens.corrupted.ids)
        )

    def between(self, place: Place, alpha: float) -> Set:
        """A site of the clean run, a part `alpha` of the way from the corrupted run's activation."""
        return {place: self.corrupted[place] + alpha * (self.clean[place] - self.corrupted[place])}

    def derivative(self, edge: Edge, run: Set) -> float:
        """What the metric of `run` gains per unit of the writer's difference at what the reader reads: autograd's."""
        difference, amount = self.difference(edge.writer), torch.zeros((), dtype=torch.float64, requires_grad=True)
        metric = self._metric(run, edge.reader, lambda stream: stream + amount * difference)
        return float(torch.autograd.grad(metric, amount)[0])

    def slope(self, edge: Edge, run: Set) -> float:
        """The same by finite differences. transformers rounds norms and softmaxes to float32, so steps are large."""
        difference = self.difference(edge.writer)

        def at(amount: float) -> float:
            return self._metric(run, edge.reader, lambda stream: stream + amount * difference).item()

        return (8 * (at(STEP) - at(-STEP)) - (at(2 * STEP) - at(-2 * STEP))) / (12 * STEP)

    def metric(self, run: Set) -> float:
        return self._metric(run, None, lambda stream: stream).item()

    def _metric(self, run: Set, reader: Reader | None, change: Callable[[Stream], Stream]) -> Float64[Tensor, ""]:
        changes = {place: (lambda _, value=value: value) for place, value in run.items()}
        with self.reference._changed(changes), self._reads(reader, change):
            logits = self.reference.model(torch.tensor([list(self.clean_ids)])).logits[0, -1]
        difference: Tensor = logits[self.answers[0]] - logits[self.answers[1]]
        return difference

    def difference(self, writer: Writer) -> Stream:
        """What the writer puts out in the clean run minus in the corrupted one."""
        clean, corrupted = (self._output(writer, run) for run in (self.clean, self.corrupted))
        return clean - corrupted

    @torch.no_grad()
    def _output(self, writer: Writer, run: Mapping[Place, Tensor]) -> Stream:
        if writer.kind == "input":
            return run["resid_pre", 0]
        assert writer.layer is not None
        if writer.kind == "mlp":
            return run["mlp_out", writer.layer]
        assert writer.head is not None
        d_head = self.reference.d_head
        columns = slice(writer.head * d_head, (writer.head + 1) * d_head)
        projection = self.reference.projection(writer.layer)
        weight = projection.weight if type(projection).__name__ == "Conv1D" else projection.weight.T
        z = run["z", writer.layer]
        output: Stream = z[:, columns] @ weight[columns]
        if self.family == "gemma2":
            norm = self.reference.blocks[writer.layer].post_attention_layernorm
            scale = ((z @ weight).square().mean(-1, keepdim=True) + norm.eps).sqrt()
            output = output / scale * (1 + norm.weight)
        return output

    @contextmanager
    def _reads(self, reader: Reader | None, change: Callable[[Stream], Stream]) -> Iterator[None]:
        if reader is None:
            handles = []
        elif reader.kind == "head":
            handles = self._read_by_head(reader, change)
        else:
            handles = [self._norm_before(reader).register_forward_pre_hook(lambda _, given: change(given[0]))]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _norm_before(self, reader: Reader) -> Any:
        if reader.layer is None:
            return self.reference.model.get_submodule(self.reference.layout.final_norm)
        return self.reference.blocks[reader.layer].get_submodule(_LAYOUTS[self.family][1])

    def _read_by_head(self, reader: Reader, change: Callable[[Stream], Stream]) -> list[Any]:
        assert reader.layer is not None
        block = self.reference.blocks[reader.layer]
        norm_name, _, projections = _LAYOUTS[self.family]
        norm, attention = block.get_submodule(norm_name), block.get_submodule(self.reference.layout.attention)
        projection = attention.get_submodule(
            projections["qkv".index(reader.via or "")] if projections[1:] else projections[0]
        )
        streams: list[Tensor] = []

        def project(_: Any, __: Any, output: Tensor) -> Tensor:
            changed = projection.forward(norm.forward(change(streams[-1])))
            columns = self._columns(reader, output.shape[-1])
            output = output.clone()
            output[..., columns] = changed[..., columns]
            return output

        return [
            norm.register_forward_pre_hook(lambda _, given: streams.append(given[0])),
            projection.register_forward_hook(project),
        ]

    def _columns(self, reader: Reader, width: int) -> slice:
        """Which of the projection's outputs are the reader's."""
        assert reader.head is not None
        d_head, which = self.reference.d_head, "qkv".index(reader.via or "")
        match self.family:
            case "gpt2":
                start = which * width // 3 + reader.head * d_head
            case "gpt_neox":
                start = (3 * reader.head + which) * d_head
            case _:
                start = reader.head * d_head
        return slice(start, start + d_head)
