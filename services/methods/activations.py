"""Activations of unpatched runs at named sites (the field's `run_with_cache`).

1. run every prompt once, up to the deepest site that is read;
2. give back what was computed there, in float32.
"""

from services.contracts.activations import (
    ActivationsResult,
    ActivationsSpec,
    PromptActivations,
    ReadPlace,
    activation_dims,
)
from services.contracts.place import Place
from services.contracts.result import PromptTokens
from services.contracts.tensor import InlineTensor
from services.engine.outcome import Outcome
from services.engine.row import Capture, Row, Site
from services.methods.context import MethodContext

VERSION = "1"


def run(spec: ActivationsSpec, context: MethodContext) -> ActivationsResult:
    """Every prompt's activations at every site, in the model's own units; negative positions count from the end."""
    captures = [[_capture(place, len(prompt.ids)) for place in spec.sites] for prompt in context.inputs.prompts]
    outcomes = context.run(
        [
            Row(prompt.ids, captures=tuple(dict.fromkeys(taken)))
            for prompt, taken in zip(context.inputs.prompts, captures, strict=True)
        ]
    )
    return ActivationsResult(
        sites=tuple(_resolved(place) for place in spec.sites),
        prompts=tuple(
            _reported(prompt, taken, outcome)
            for prompt, taken, outcome in zip(context.inputs.prompts, captures, outcomes, strict=True)
        ),
        warnings=tuple(context.warnings),
        provenance=context.provenance("activations", VERSION),
        usage=context.usage(),
    )


def _capture(place: Place, length: int) -> Capture:
    site, layer = place.located()
    return Capture(Site(site, layer, place.head), place.indices(length))


def _resolved(place: Place) -> ReadPlace:
    site, layer = place.located()
    return ReadPlace(site=site, layer=layer, head=place.head, positions=place.positions)


def _reported(prompt: PromptTokens, taken: list[Capture], outcome: Outcome) -> PromptActivations:
    return PromptActivations(
        tokens=prompt,
        activations=tuple(
            InlineTensor.of(outcome.captures[capture], activation_dims(capture.site.name, capture.site.head))
            for capture in taken
        ),
    )
