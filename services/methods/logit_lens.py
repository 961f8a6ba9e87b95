"""The logit lens: each layer's residual stream, read as if it were the last (nostalgebraist 2020, "interpreting GPT:
the logit lens").

1. run each example once and take the residual stream before the first and after every layer;
2. put it through the model's final norm, at that stream's own scale, then through the unembedding, the logit scale and
   the final soft cap: after the last layer these are the model's own logits;
3. per layer and position: the top tokens, the entropy, KL(final ‖ layer), and the metric.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from services.catalogue.costs.cost import unembedding_token_layers
from services.contracts.inputs import TokenizedExample
from services.contracts.logit_lens import LensExample, LensLayer, LensToken, LogitLensResult, LogitLensSpec
from services.contracts.site import SiteName
from services.contracts.tensor import InlineTensor
from services.engine.outcome import Outcome
from services.engine.reading import numbers_of
from services.engine.readout import TopK
from services.engine.row import Capture, Row, Site
from services.engine.weights import Weights
from services.methods.context import MethodContext
from services.methods.grouping import together
from services.methods.metric import Measure, finite, measure

VERSION = "1"

TOKENS_AT_ONCE = 1_024
"""Examples are run together up to about this many tokens, so that a job's memory does not grow with its examples."""

ROWS_AT_ONCE = 64
"""Residual vectors unembedded at once: few enough for their logits over the vocabulary to stay small."""

Cells = Float[Tensor, " cell"]


@dataclass(frozen=True, eq=False)
class Lensed:
    """Layer by layer, position by position within a layer."""

    tokens: Int[Tensor, "cell top"]
    logits: Float[Tensor, "cell top"]
    probabilities: Float[Tensor, "cell top"]
    entropy: Cells
    kl: Cells
    metric: Cells | None


def run(spec: LogitLensSpec, context: MethodContext) -> LogitLensResult:
    """Read every example. Entropy and KL are in nats; positions count from 0."""
    layers = spec.read_layers(context.model.facts)
    lens = _Lens(spec, context, context.weights())
    examples: list[LensExample] = []
    for group in together(context.inputs.examples, lambda example: len(example.prompt.ids), TOKENS_AT_ONCE):
        captures = [_captures(example, layers, spec, context) for example in group]
        rows = [
            Row(example.prompt.ids, captures=tuple(dict.fromkeys(taken)))
            for example, taken in zip(group, captures, strict=True)
        ]
        outcomes = context.run(rows)
        examples += [
            lens.read(example, taken, outcome)
            for example, taken, outcome in zip(group, captures, outcomes, strict=True)
        ]
    return LogitLensResult(
        layers=layers,
        examples=tuple(examples),
        warnings=tuple(context.warnings),
        provenance=context.provenance("logit_lens", VERSION),
        usage=context.usage(),
    )


def _captures(
    example: TokenizedExample, layers: Sequence[LensLayer], spec: LogitLensSpec, context: MethodContext
) -> list[Capture]:
    """The residual stream of every layer asked for, and last of all the final one."""
    positions = spec.read_at().indices(len(example.prompt.ids))
    before = Site(SiteName.RESID_PRE, 0)
    read = [before if layer == "embed" else Site(SiteName.RESID_POST, layer) for layer in layers]
    return [Capture(site, positions) for site in (*read, Site(SiteName.RESID_POST, context.model.facts.layers - 1))]


@dataclass(frozen=True, eq=False)
class _Lens:
    """One job's lens: the model's last modules, and what is read through them."""

    spec: LogitLensSpec
    context: MethodContext
    weights: Weights

    def read(self, example: TokenizedExample, captures: Sequence[Capture], outcome: Outcome) -> LensExample:
        """One example's table; the last capture is the final residual stream."""
        streams = [outcome.captures[capture].to(self.weights.W_U) for capture in captures]
        metric = self.spec.metric
        measured = None if metric is None else measure(metric, example, self.context.inputs)
        lensed = _joined(list(self._cells(streams, measured)))
        positions = captures[0].positions or tuple(range(len(example.prompt.ids)))
        shape = (len(captures) - 1, len(positions))

        def table(cells: Cells) -> InlineTensor:
            return InlineTensor.of(cells.reshape(shape), ("layer", "position"))

        return LensExample(
            tokens=example.prompt,
            positions=positions,
            top=tuple(tuple(row) for row in _top(lensed, shape, self.context)),
            entropy=table(lensed.entropy),
            kl=table(lensed.kl),
            metric=None if lensed.metric is None else table(lensed.metric),
        )

    def _cells(
        self, streams: Sequence[Float[Tensor, "position d_model"]], measured: Measure | None
    ) -> Iterator[Lensed]:
        """Layer by layer. Some positions go through all layers together: their final distribution is computed once."""
        unembedding = unembedding_token_layers(self.context.model.facts)
        *layers, last = streams
        pieces: list[list[Lensed]] = [[] for _ in layers]
        for first in range(0, len(last), ROWS_AT_ONCE):
            started = time.monotonic()
            rows = slice(first, first + ROWS_AT_ONCE)
            final = self.weights.logits(last[rows]).double().log_softmax(-1)
            for of_layer, stream in zip(pieces, layers, strict=True):
                of_layer.append(_of_layer(self.weights.logits(stream[rows]), final, self.spec.top_k, measured))
            self.context.charge(len(final) * len(streams) * unembedding, time.monotonic() - started)
        for of_layer in pieces:
            yield from of_layer


def _of_layer(
    logits: Float[Tensor, "cell vocabulary"],
    final: Float[Tensor, "cell vocabulary"],
    top_k: int,
    measured: Measure | None,
) -> Lensed:
    log_probs = logits.double().log_softmax(-1)
    top = logits.topk(min(top_k, logits.shape[-1]))
    finite(float(top.values.sum()), "a logit of the lens")
    return Lensed(
        tokens=top.indices.cpu(),
        logits=top.values.cpu(),
        probabilities=log_probs.gather(-1, top.indices).exp().cpu(),
        entropy=-(log_probs.exp() * log_probs).sum(-1).cpu(),
        kl=(final.exp() * (final - log_probs)).sum(-1).cpu(),
        metric=None if measured is None else torch.tensor([_measured(row, measured) for row in logits]),
    )


def _measured(logits: Float[Tensor, " vocabulary"], measured: Measure) -> float:
    assert not isinstance(measured.readout, TopK)
    return measured.value(numbers_of(measured.readout, logits[None]))


def _joined(pieces: Sequence[Lensed]) -> Lensed:
    metrics = [piece.metric for piece in pieces if piece.metric is not None]
    return Lensed(
        tokens=torch.cat([piece.tokens for piece in pieces]),
        logits=torch.cat([piece.logits for piece in pieces]),
        probabilities=torch.cat([piece.probabilities for piece in pieces]),
        entropy=torch.cat([piece.entropy for piece in pieces]),
        kl=torch.cat([piece.kl for piece in pieces]),
        metric=torch.cat(metrics) if metrics else None,
    )


def _top(lensed: Lensed, shape: tuple[int, int], context: MethodContext) -> Iterator[Iterator[tuple[LensToken, ...]]]:
    cells = zip(lensed.tokens.tolist(), lensed.logits.tolist(), lensed.probabilities.tolist(), strict=True)
    layers, positions = shape
    for _ in range(layers):
        yield (_listed(*next(cells), context) for _ in range(positions))


def _listed(
    tokens: list[int], logits: list[float], probabilities: list[float], context: MethodContext
) -> tuple[LensToken, ...]:
    return tuple(
        LensToken(token_id=token, token=context.tokenizer.string(token), logit=logit, probability=probability)
        for token, logit, probability in zip(tokens, logits, probabilities, strict=True)
    )
