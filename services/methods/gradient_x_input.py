"""Gradient × input: a first-order account of what each input token adds to the metric (Simonyan et al. 2013,
arXiv:1312.6034; Shrikumar et al. 2016, arXiv:1605.01713).

1. run each example once, forward and backward, and take the embedding and the metric's gradient at every position;
2. a position's attribution is their dot product.

A token acts through its embedding alone: position embeddings are no part of it. The attributions need not add up to
anything; `integrated_gradients` do.
"""

import torch

from services.contracts.attribution import AttributionResult, AttributionSpec
from services.contracts.gradient_x_input import GradientXInputOutcome, InputAttributions
from services.contracts.inputs import TokenizedExample
from services.contracts.site import SiteName
from services.contracts.tensor import InlineTensor
from services.engine.outcome import Outcome
from services.engine.row import Capture, Gradients, Row, Site
from services.methods.context import MethodContext
from services.methods.metric import Measure, finite, measure

VERSION = "1"

EMBEDDING = Capture(Site(SiteName.EMBED))


def run(spec: AttributionSpec, context: MethodContext) -> AttributionResult:
    """Attribute every example's metric to its tokens, in the metric's units; a positive token raises it."""
    examples = context.inputs.examples
    measures = [measure(spec.metric, example, context.inputs) for example in examples]
    outcomes = context.run([_row(example, measured) for example, measured in zip(examples, measures, strict=True)])
    return AttributionResult(
        attribution=GradientXInputOutcome(
            examples=tuple(
                _attributed(example, measured, outcome)
                for example, measured, outcome in zip(examples, measures, outcomes, strict=True)
            )
        ),
        warnings=tuple(context.warnings),
        provenance=context.provenance("gradient_x_input", VERSION),
        usage=context.usage(),
    )


def _row(example: TokenizedExample, measured: Measure) -> Row:
    gradients = Gradients(measured.objective, (EMBEDDING,))
    return Row(example.prompt.ids, captures=(EMBEDDING,), readout=measured.readout, gradients=gradients)


def _attributed(example: TokenizedExample, measured: Measure, outcome: Outcome) -> InputAttributions:
    embedding, gradient = outcome.captures[EMBEDDING].double(), outcome.gradients[EMBEDDING].double()
    attributions = torch.einsum("pd,pd->p", embedding, gradient)
    return InputAttributions(
        tokens=example.prompt,
        metric=finite(measured.value(outcome.values()), "the metric"),
        attributions=InlineTensor.of(attributions.numpy(), ("position",)),
    )
