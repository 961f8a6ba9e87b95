"""What `generation` costs when no text ends early: every text token by token, and scored once under the other model.

A text that ends at a stop token costs less than was estimated, and is billed what it cost. The same text at two
strengths is scored once for both.
"""

from collections.abc import Iterator

from services.catalogue.costs.cost import Cost
from services.catalogue.costs.rows import PlannedRow, Tokens, Touch, work
from services.contracts.generation import GenerationSpec
from services.contracts.inputs import Inputs
from services.contracts.model import ModelFacts
from services.contracts.sae import SaeFacts
from services.contracts.site import SiteName
from services.contracts.steering import DirectionSteering, FeatureSteering, Steering

TOKEN_BYTES = 70
"""One new token with its text and its log probabilities, as JSON."""


def generation_cost(spec: GenerationSpec, inputs: Inputs, model: ModelFacts, sae: SaeFacts | None) -> Cost:
    texts = 1 + len(spec.steered_strengths())
    places = [_place(steering, sae) for steering in spec.steering]
    written = sum(_run(spec, len(prompt.ids), model) for prompt in inputs.prompts) * texts * model.layers
    total = written + work(_looks(spec, inputs, places), model.layers)
    if spec.log_probs and spec.steering:
        total += work(_scoring(spec, inputs, places, model), model.layers)
    return Cost(total, len(inputs.prompts) * texts * spec.max_new_tokens * TOKEN_BYTES)


Place = tuple[SiteName, int]


def _place(steering: Steering, sae: SaeFacts | None) -> Place:
    match steering:
        case FeatureSteering():
            assert sae is not None
            return sae.site, sae.layer
        case DirectionSteering():
            return SiteName(steering.site), steering.layer
        case _:
            return SiteName.Z, steering.layer


def _run(spec: GenerationSpec, length: int, model: ModelFacts) -> int:
    """Positions that are run of one text: the last new token is read, and never run."""
    return min(model.context, length + spec.max_new_tokens - 1)


def _looks(spec: GenerationSpec, inputs: Inputs, places: list[Place]) -> Iterator[PlannedRow]:
    """The prompts' unsteered activations, where amounts or an SAE's threshold need them."""
    looked_at = [
        place
        for steering, place in zip(spec.steering, places, strict=True)
        if isinstance(steering, FeatureSteering) or (spec.unit == "mean_norm" and steering.scaled)
    ]
    if looked_at:
        depth = max(layer + (site is not SiteName.RESID_PRE) for site, layer in looked_at)
        touches = tuple(Touch(site, layer, 0) for site, layer in looked_at)
        yield from (PlannedRow(prompt.ids, depth, touches) for prompt in inputs.prompts)


def _scoring(spec: GenerationSpec, inputs: Inputs, places: list[Place], model: ModelFacts) -> Iterator[PlannedRow]:
    """By prompt and strength: the steered text unsteered, the unsteered one steered. Texts are told apart by what
    follows the prompt, and their tokens are not known yet."""
    for number, prompt in enumerate(inputs.prompts):
        length = len(prompt.ids)
        new = _run(spec, length, model) - length
        first = spec.from_position if spec.from_position >= 0 else spec.from_position % length
        touches = tuple(Touch(site, layer, first) for site, layer in places) if first < length + new else ()
        for strength in range(1, 1 + len(spec.strengths)):
            yield PlannedRow(_text(prompt.ids, number, strength, new), model.layers, reads_at=length - 1)
            yield PlannedRow(_text(prompt.ids, number, 0, new), model.layers, touches, reads_at=length - 1)


def _text(prompt: Tokens, number: int, strength: int, new: int) -> Tokens:
    return (*prompt, *[-1 - strength - 17 * number] * new)
