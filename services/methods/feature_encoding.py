"""Prompts to features: run up to the SAE's layer, leave out tokens over its norm threshold, encode what is needed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from services.contracts.features import FeaturesSpec
from services.contracts.result import PromptTokens
from services.engine.row import Row
from services.methods.context import MethodContext, SaeInUse
from services.methods.grouping import together
from services.methods.sae_places import SaePlaces
from services.saes.sae import Sae

TOKENS_AT_ONCE = 16_384
"""Prompts are run together up to about this many tokens, so that a job's memory does not grow with its prompts."""

Activations = Float[Tensor, "token d_model"]
Features = Float[Tensor, "token feature"]


@dataclass(frozen=True)
class Encoded:
    """One prompt's activations, which tokens count, and their features (zero for those that do not).

    `target` is what the SAE is to rebuild: the activations it reads, or a transcoder's output. `reported` are the
    features asked for, `features` all of the SAE's. None where nothing needs them.
    """

    tokens: PromptTokens
    activations: Activations
    target: Activations | None
    counted: Bool[Tensor, " token"]
    reported: Features
    features: Features | None


def encode(
    spec: FeaturesSpec, prompts: Sequence[PromptTokens], context: MethodContext, in_use: SaeInUse
) -> Iterator[Encoded]:
    """The features of each prompt in turn, of which only a few prompts are held at once."""
    sae, places, reconstructs = in_use.sae, SaePlaces(in_use.facts, context.model), spec.reconstructs()
    captures = tuple(dict.fromkeys((places.reads, places.rebuilds) if reconstructs else (places.reads,)))
    for group in together(prompts, lambda prompt: len(prompt.ids), TOKENS_AT_ONCE):
        outcomes = context.run([Row(prompt.ids, captures=captures) for prompt in group])
        for prompt, outcome in zip(group, outcomes, strict=True):
            activations = places.inputs(outcome).to(sae.W_enc)
            counted = sae.within_norm(activations)
            features = sae.encode(activations) * counted[:, None] if reconstructs else None
            yield Encoded(
                tokens=prompt,
                activations=activations,
                target=places.targets(outcome).to(sae.W_dec) if reconstructs else None,
                counted=counted,
                reported=_reported(spec, sae, activations, counted, features),
                features=features,
            )


def _reported(
    spec: FeaturesSpec, sae: Sae, activations: Activations, counted: Bool[Tensor, " token"], features: Features | None
) -> Features:
    """The features asked for, taken from all of them where these are known anyway."""
    if features is not None:
        return features if spec.features is None else features[:, list(spec.features)]
    if spec.features is None:
        return sae.encode(activations) * counted[:, None]
    return sae.encode_columns(activations, spec.features) * counted[:, None]
