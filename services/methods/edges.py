"""What edges pass on: the differences that writers make, the gradients at what readers read, and their products.

1. a writer's difference is its output in the clean run minus that in the corrupted one; a head's output is its part of
   `attn_out`, through a post-norm at that run's own scale where the family has one;
2. the gradient at what a head's q reads is W_Q^T times the gradient at q, pulled back through attention's norm at the
   run's own residual stream; k and v likewise, by KV head;
3. the gradient at what an MLP reads is what is left of the gradient before it when the residual stream's own way past
   it is taken off: grad(resid_mid) − grad(resid_post), and in parallel blocks grad(resid_pre) − grad(resid_post) − Σ of
   the layer's heads;
4. at the logits it is grad(resid_post) of the last layer;
5. a score is the product of difference and gradient, summed over positions. It is linear in the gradient, so runs along
   a path add up, each with its weight.

Positions are taken a block at a time: neither side is ever held for all positions of a long prompt.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from services.contracts.errors import ErrorCode, JobFailed
from services.contracts.site import SiteName
from services.engine.outcome import Outcome
from services.engine.row import Capture, Site
from services.engine.weights import Norm, Weights
from services.methods.graph import Graph, ReaderGroup, WriterGroup

BLOCK_BYTES = 32 * 2**20
"""All writers' differences at this many bytes' worth of positions are held at a time."""

TOLERANCE = 0.02
"""Of the largest q, k or v: how far they may be from what the weights make of the residual stream."""

QKV = (SiteName.Q, SiteName.K, SiteName.V)

Captures = Mapping[Capture, Float[Tensor, "position ..."]]
Scores = Float64[np.ndarray, "writer reader"]


@dataclass(frozen=True)
class WeightedRun:
    """A run with its readers' gradients, and its weight in the mean."""

    outcome: Outcome
    weight: float


class Edges:
    """The arithmetic of one model's edges; `block_bytes` of writers' differences are held at a time."""

    def __init__(self, graph: Graph, weights: Weights, *, block_bytes: int = BLOCK_BYTES) -> None:
        self.graph = graph
        self._block_bytes = block_bytes
        self._weights = weights
        self._norms: list[Norm | None] = [weights.attention_norm(layer) for layer in range(graph.facts.layers)]

    def taken_at_ends(self) -> tuple[Capture, ...]:
        """What the clean and the corrupted run must yield."""
        return tuple(group.parts for group in self.graph.writer_groups)

    def taken_to_check(self) -> tuple[Capture, ...]:
        """What one run must yield for `check`."""
        layers = range(self.graph.facts.layers)
        return tuple(Capture(Site(site, layer)) for layer in layers for site in (SiteName.RESID_PRE, *QKV))

    def taken_on_the_way(self, readers: Sequence[ReaderGroup]) -> tuple[tuple[Capture, ...], tuple[Capture, ...]]:
        """What a run must yield for `add`: captures, and gradients."""
        captures: dict[Capture, None] = {}
        gradients: dict[Capture, None] = {}
        for group in readers:
            heads = group.kind == "head" or (group.kind == "mlp" and self.graph.facts.parallel_blocks)
            if heads:
                gradients |= {Capture(Site(site, group.layer)): None for site in QKV}
                captures |= {} if self._norms[group.layer] is None else {_stream(group.layer): None}
            if group.kind == "mlp":
                gradients[self._before_mlp(group.layer)] = None
            if group.kind != "head":
                gradients[_after(group.layer)] = None
        return tuple(captures), tuple(gradients)

    def check(self, taken: Captures) -> None:
        """Raise JobFailed unless q, k and v are what the weights make of the residual stream."""
        for layer, norm in enumerate(self._norms):
            read = taken[_stream(layer)]
            if norm is not None:
                read = norm.linear(read, norm.scale(read).to(read)) + (0.0 if norm.bias is None else norm.bias.to(read))
            for site in QKV:
                W, b = self._weights.head_inputs(layer, site)
                found = taken[Capture(Site(site, layer))]
                made = torch.einsum("pm,hdm->phd", read, W.to(read)) + (0.0 if b is None else b.to(read))
                if not bool((made - found).abs().max() <= TOLERANCE * found.abs().max()):
                    message = (
                        f"{self.graph.facts.id} makes the {site} of layer {layer} of something else than its residual "
                        "stream by one norm and one matrix, so its edges are unknown: use attribution_patching, which "
                        "needs none"
                    )
                    raise JobFailed(ErrorCode.METHOD_FAILED, message)

    def add(
        self,
        scores: Scores,
        ends: tuple[Captures, Captures],
        writers: Sequence[WriterGroup],
        readers: Sequence[ReaderGroup],
        runs: Sequence[WeightedRun],
    ) -> None:
        """Add to `scores` what `writers`, given the clean and the corrupted run, pass on to `readers` in `runs`."""
        first = writers[0].first
        for block in self._blocks(len(ends[0][writers[0].parts])):
            clean, corrupted = (self._outputs(end, writers, block) for end in ends)
            differences = (clean - corrupted).flatten(1)
            for group, gradients in self._gradients(readers, runs, block):
                seen = differences[: group.seen - first]
                products = seen @ gradients.flatten(1).T
                scores[first : first + len(seen), group.first : group.end] += products.double().numpy()

    def _blocks(self, positions: int) -> Iterator[slice]:
        position_bytes = len(self.graph.writers) * self.graph.facts.d_model * 4
        step = max(1, self._block_bytes // position_bytes)
        for start in range(0, positions, step):
            yield slice(start, min(start + step, positions))

    def _outputs(
        self, end: Captures, writers: Sequence[WriterGroup], block: slice
    ) -> Float[Tensor, "writer position d_model"]:
        return torch.cat([self._output(group, end[group.parts][block]) for group in writers])

    def _output(
        self, group: WriterGroup, parts: Float[Tensor, "position ..."]
    ) -> Float[Tensor, "writer position d_model"]:
        if group.kind != "head":
            return parts[None]
        heads, _ = self._weights.head_terms(group.layer, parts)
        return heads.transpose(0, 1)

    def _gradients(
        self, readers: Sequence[ReaderGroup], runs: Sequence[WeightedRun], block: slice
    ) -> Iterator[tuple[ReaderGroup, Float[Tensor, "reader position d_model"]]]:
        """By group of readers, the weighted sum over `runs` of the gradients at what they read."""
        for group in readers:
            match group.kind:
                case "head":
                    yield group, self._at_heads(group.layer, runs, block)
                case "mlp":
                    yield group, self._at_mlp(group.layer, runs, block)[None]
                case _:
                    yield group, _summed(_after(group.layer), runs, block)[None]

    def _at_heads(
        self, layer: int, runs: Sequence[WeightedRun], block: slice
    ) -> Float[Tensor, "reader position d_model"]:
        read = torch.cat([self._through(site, layer, runs, block) for site in QKV], dim=1)
        norm = self._norms[layer]
        if norm is not None:
            streams = torch.stack([run.outcome.captures[_stream(layer)][block] for run in runs])
            read = norm.pulled_back(read, streams[:, None])
        return read.sum(0)

    def _through(
        self, site: SiteName, layer: int, runs: Sequence[WeightedRun], block: slice
    ) -> Float[Tensor, "run reader position d_model"]:
        """From the gradient at q, k or v to that at what makes it."""
        place = Capture(Site(site, layer))
        at_site = torch.stack([run.weight * run.outcome.gradients[place][block] for run in runs])
        W, _ = self._weights.head_inputs(layer, site)
        return torch.einsum("rphd,hdm->rhpm", at_site, W.to(at_site))

    def _at_mlp(self, layer: int, runs: Sequence[WeightedRun], block: slice) -> Float[Tensor, "position d_model"]:
        gradient = _summed(self._before_mlp(layer), runs, block) - _summed(_after(layer), runs, block)
        if self.graph.facts.parallel_blocks:
            gradient -= self._at_heads(layer, runs, block).sum(0)
        return gradient

    def _before_mlp(self, layer: int) -> Capture:
        return _stream(layer) if self.graph.facts.parallel_blocks else Capture(Site(SiteName.RESID_MID, layer))


def _stream(layer: int) -> Capture:
    return Capture(Site(SiteName.RESID_PRE, layer))


def _after(layer: int) -> Capture:
    return Capture(Site(SiteName.RESID_POST, layer))


def _summed(place: Capture, runs: Sequence[WeightedRun], block: slice) -> Float[Tensor, "position d_model"]:
    return torch.stack([run.weight * run.outcome.gradients[place][block] for run in runs]).sum(0)
