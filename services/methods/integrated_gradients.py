"""Integrated gradients: each input token's share of the metric's change from a baseline (Sundararajan et al. 2017,
arXiv:1703.01365).

1. read the metric and the embeddings x of the prompt and x' of its baseline;
2. run the prompt with its embeddings set to x' + α (x − x') at every position, for each α of the quadrature, and take
   the gradient at the embeddings;
3. a position's attribution is (x − x') · the weighted mean of those gradients;
4. they would add up to m(x) − m(x') if the integral were exact; what is missing is reported as the completeness gap.

The baseline is the corrupted prompt's embeddings, zero, or the mean of the vocabulary's embeddings.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from services.contracts.attribution import AttributionResult, AttributionSpec
from services.contracts.inputs import TokenizedExample, TokenizedPair
from services.contracts.integrated_gradients import (
    IntegratedExample,
    IntegratedGradients,
    IntegratedGradientsOutcome,
)
from services.contracts.quadrature import nodes_of
from services.contracts.result import PromptTokens
from services.contracts.tensor import InlineTensor
from services.engine.row import Gradients, Intervention, Row
from services.methods.context import MethodContext
from services.methods.gradient_x_input import EMBEDDING
from services.methods.metric import Measure, finite, measure

VERSION = "1"

TOKENS_AT_ONCE = 16_384
"""Interpolated rows are made and run up to about so many tokens at once: memory does not grow with the steps."""

Embeddings = Float[Tensor, "position d_model"]


@dataclass(frozen=True)
class Path:
    """The way from a baseline to a prompt, and the metric at both ends."""

    prompt: PromptTokens
    baseline_prompt: PromptTokens | None
    measured: Measure
    end: Embeddings
    start: Embeddings
    metric: float
    baseline_metric: float

    def row(self, alpha: float) -> Row:
        """The prompt with its embeddings a part `alpha` of the way along, and the gradient there."""
        embeddings = self.start + alpha * (self.end - self.start)
        return Row(
            self.prompt.ids,
            (_embedding_set(embeddings),),
            readout=self.measured.readout,
            gradients=Gradients(self.measured.objective, (EMBEDDING,)),
        )


def run(method: IntegratedGradients, spec: AttributionSpec, context: MethodContext) -> AttributionResult:
    """Attribute every prompt's change of the metric to its tokens, in the metric's units; positive raises it."""
    paths = _paths(method, spec, context)
    sums = _integrated(paths, method, context)
    return AttributionResult(
        attribution=IntegratedGradientsOutcome(
            baseline=method.baseline,
            steps=method.steps,
            quadrature=method.quadrature,
            examples=tuple(_reported(path, gradient) for path, gradient in zip(paths, sums, strict=True)),
        ),
        warnings=tuple(context.warnings),
        provenance=context.provenance("integrated_gradients", VERSION),
        usage=context.usage(),
    )


def _paths(method: IntegratedGradients, spec: AttributionSpec, context: MethodContext) -> list[Path]:
    """Both ends of every path: two readings, and the embeddings."""
    items: list[TokenizedPair | TokenizedExample] = [*context.inputs.pairs, *context.inputs.examples]
    measures = [measure(spec.metric, item, context.inputs) for item in items]
    ends = [item.clean if isinstance(item, TokenizedPair) else item.prompt for item in items]
    end_embeddings = _embeddings(ends, context)
    starts = _starts(end_embeddings, method, context)
    rows = [Row(end.ids, readout=measured.readout) for end, measured in zip(ends, measures, strict=True)]
    rows += [
        Row(item.corrupted.ids, readout=measured.readout)
        if isinstance(item, TokenizedPair)
        else Row(item.prompt.ids, (_embedding_set(start),), readout=measured.readout)
        for item, start, measured in zip(items, starts, measures, strict=True)
    ]
    readings = [outcome.values() for outcome in context.run(rows)]
    return [
        Path(
            prompt=ends[index],
            baseline_prompt=item.corrupted if isinstance(item, TokenizedPair) else None,
            measured=measures[index],
            end=end_embeddings[index],
            start=starts[index],
            metric=finite(measures[index].value(readings[index]), "the metric"),
            baseline_metric=finite(measures[index].value(readings[len(items) + index]), "the metric at the baseline"),
        )
        for index, item in enumerate(items)
    ]


def _starts(ends: list[Embeddings], method: IntegratedGradients, context: MethodContext) -> list[Embeddings]:
    """The embeddings of every baseline."""
    if method.baseline == "corrupted":
        return _embeddings([pair.corrupted for pair in context.inputs.pairs], context)
    if method.baseline == "zero":
        return [torch.zeros_like(end) for end in ends]
    mean = context.weights().mean_embedding().to(ends[0])
    return [mean.expand_as(end) for end in ends]


def _embeddings(prompts: list[PromptTokens], context: MethodContext) -> list[Embeddings]:
    outcomes = context.run([Row(prompt.ids, captures=(EMBEDDING,)) for prompt in prompts])
    return [outcome.captures[EMBEDDING] for outcome in outcomes]


def _embedding_set(embeddings: Embeddings) -> Intervention:
    return Intervention(EMBEDDING.site, None, "set", embeddings)


def _integrated(
    paths: list[Path], method: IntegratedGradients, context: MethodContext
) -> list[Float64[Tensor, "position d_model"]]:
    """Every path's gradient, averaged along it by the quadrature."""
    sums = [torch.zeros_like(path.end, dtype=torch.float64) for path in paths]
    waiting = _steps(paths, method)
    at_once = max(1, TOKENS_AT_ONCE // max(len(path.prompt.ids) for path in paths))
    while together := list(islice(waiting, at_once)):
        outcomes = context.run([paths[index].row(alpha) for index, alpha, _ in together])
        for (index, _, weight), outcome in zip(together, outcomes, strict=True):
            sums[index] += weight * outcome.gradients[EMBEDDING].double()
    return sums


def _steps(paths: list[Path], method: IntegratedGradients) -> Iterator[tuple[int, float, float]]:
    """Which path, how far along it, and with what weight."""
    for index in range(len(paths)):
        for alpha, weight in nodes_of(method.quadrature, method.steps):
            yield index, alpha, weight


def _reported(path: Path, gradient: Float64[Tensor, "position d_model"]) -> IntegratedExample:
    attributions = torch.einsum("pd,pd->p", (path.end - path.start).double(), gradient)
    total = finite(float(attributions.sum()), "the sum of the attributions")
    return IntegratedExample(
        tokens=path.prompt,
        baseline_tokens=path.baseline_prompt,
        metric=path.metric,
        baseline_metric=path.baseline_metric,
        attributions=InlineTensor.of(attributions.numpy(), ("position",)),
        sum=total,
        completeness_gap=path.metric - path.baseline_metric - total,
    )
