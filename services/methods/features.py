"""SAE features on prompts (Bricken et al. 2023; Cunningham et al. 2023, arXiv:2309.08600).

1. run each prompt up to the SAE's layer and take the activations at its site;
2. leave out tokens whose norm is over the SAE's threshold: attention sinks, on which it was not trained;
3. encode, only the features asked for where nothing needs the others; report the strongest per token and prompt;
4. decode, where asked, and say how much of the activations came back;
5. for every feature reported, the tokens that its decoder direction promotes and suppresses through W_U.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from services.contracts.features import (
    ActiveFeature,
    FeatureEffect,
    FeaturesResult,
    FeaturesSpec,
    PromotedToken,
    PromptFeature,
    PromptFeatures,
    Reconstruction,
    TokenFeatures,
)
from services.contracts.result import PromptTokens
from services.contracts.tensor import InlineTensor
from services.engine.row import Capture, Row, Site
from services.methods.context import MethodContext, SaeInUse
from services.saes.sae import Sae

VERSION = "2"

TOKENS_AT_ONCE = 16_384
"""Prompts are run together up to about this many tokens, so that a job's memory does not grow with its prompts."""

EFFECTS_AT_ONCE = 256

Activations = Float[Tensor, "token d_model"]
Features = Float[Tensor, "token feature"]


@dataclass(frozen=True)
class Encoded:
    """One prompt's activations, which tokens count, and their features (zero for those that do not).

    `reported` are the features asked for, `features` all of the SAE's; None where nothing needs them.
    """

    tokens: PromptTokens
    activations: Activations
    counted: Bool[Tensor, " token"]
    reported: Features
    features: Features | None


def run(spec: FeaturesSpec, context: MethodContext) -> FeaturesResult:
    """The features of every prompt; activations are in the SAE's own units, positions count from 0."""
    assert context.sae is not None, "the worker loads the SAE that the specification names"
    sae, facts = context.sae.sae, context.sae.facts
    prompts = [_report(encoded, spec, sae) for encoded in _encode(spec, context, context.sae)]
    shown = sorted({feature.index for prompt in prompts for feature in prompt.top})
    return FeaturesResult(
        sae=spec.sae,
        layer=facts.layer,
        site=facts.site,
        features=spec.features,
        prompts=tuple(prompts),
        effects=tuple(_effects(shown, spec.promoted_logits, sae, context)),
        warnings=tuple(context.warnings),
        provenance=context.provenance("features", VERSION),
        usage=context.usage(),
    )


def _encode(spec: FeaturesSpec, context: MethodContext, in_use: SaeInUse) -> Iterator[Encoded]:
    sae = in_use.sae
    capture = Capture(Site(in_use.facts.site, in_use.facts.layer))
    for prompts in _together(context.inputs.prompts):
        outcomes = context.run([Row(prompt.ids, captures=(capture,)) for prompt in prompts])
        for prompt, outcome in zip(prompts, outcomes, strict=True):
            activations = outcome.captures[capture].to(sae.W_enc)
            counted = sae.within_norm(activations)
            features = sae.encode(activations) * counted[:, None] if spec.reconstructs() else None
            yield Encoded(prompt, activations, counted, _reported(spec, sae, activations, counted, features), features)


def _reported(
    spec: FeaturesSpec, sae: Sae, activations: Activations, counted: Bool[Tensor, " token"], features: Features | None
) -> Features:
    """The features asked for, taken from all of them where these are known anyway."""
    if features is not None:
        return features if spec.features is None else features[:, list(spec.features)]
    if spec.features is None:
        return sae.encode(activations) * counted[:, None]
    return sae.encode_columns(activations, spec.features) * counted[:, None]


def _together(prompts: Sequence[PromptTokens]) -> Iterator[list[PromptTokens]]:
    group: list[PromptTokens] = []
    for prompt in prompts:
        if group and sum(len(member.ids) for member in group) + len(prompt.ids) > TOKENS_AT_ONCE:
            yield group
            group = []
        group.append(prompt)
    yield group


def _report(encoded: Encoded, spec: FeaturesSpec, sae: Sae) -> PromptFeatures:
    chosen = torch.tensor(spec.features if spec.features is not None else range(sae.d_sae))
    columns = encoded.reported
    return PromptFeatures(
        tokens=encoded.tokens,
        over_norm=tuple((~encoded.counted).nonzero().flatten().tolist()),
        per_token=tuple(_per_token(encoded, columns, chosen, spec.top_k)) if spec.per_token else (),
        top=tuple(_over_prompt(columns, chosen, spec.top_k)),
        reconstruction=None if encoded.features is None else _reconstruction(encoded, encoded.features, sae),
        activations=None if spec.features is None else InlineTensor.of(columns.cpu(), ("position", "feature")),
    )


def _per_token(encoded: Encoded, columns: Features, chosen: Tensor, top_k: int) -> Iterator[TokenFeatures]:
    values, places = columns.topk(min(top_k, columns.shape[1]), dim=1)
    for position, string in enumerate(encoded.tokens.strings):
        strongest = zip(values[position].tolist(), chosen[places[position]].tolist(), strict=True)
        yield TokenFeatures(
            position=position,
            token=string,
            over_norm=not bool(encoded.counted[position]),
            features=tuple(ActiveFeature(index=index, activation=value) for value, index in strongest if value > 0),
        )


def _over_prompt(columns: Features, chosen: Tensor, top_k: int) -> Iterator[PromptFeature]:
    """By largest activation on any token. The mean is over all of the prompt's tokens."""
    largest, positions = columns.max(dim=0)
    for place in largest.topk(min(top_k, columns.shape[1])).indices.tolist():
        if largest[place] > 0:
            yield PromptFeature(
                index=int(chosen[place]),
                max_activation=float(largest[place]),
                max_position=int(positions[place]),
                mean_activation=float(columns[:, place].mean()),
                active_tokens=int((columns[:, place] > 0).sum()),
            )


def _reconstruction(encoded: Encoded, every: Features, sae: Sae) -> Reconstruction:
    """MSE per dimension; explained variance 1 − Σ|x − x̂|² / Σ|x − reference|²."""
    reference = "prompt_mean" if sae.mean_activation is None else "sae_mean"
    x = encoded.activations[encoded.counted].double()
    if not len(x):
        return Reconstruction(tokens=0, mse=None, explained_variance=None, reference=reference, mean_l0=None)
    features = every[encoded.counted]
    error = (x - sae.decode(features).double()).square().sum()
    mean = x.mean(dim=0) if sae.mean_activation is None else sae.mean_activation.double()
    variance = (x - mean).square().sum()
    return Reconstruction(
        tokens=len(x),
        mse=float(error / x.numel()),
        explained_variance=float(1 - error / variance) if variance > 0 else None,
        reference=reference,
        mean_l0=float((features > 0).sum(dim=1).double().mean()),
    )


def _effects(features: list[int], count: int, sae: Sae, context: MethodContext) -> Iterator[FeatureEffect]:
    """Logits that one unit of each feature adds per token, the final norm's gain applied, its scale left out."""
    if count == 0 or not features:
        return
    weights = context.weights()
    for start in range(0, len(features), EFFECTS_AT_ONCE):
        indices = features[start : start + EFFECTS_AT_ONCE]
        logits = weights.unembedded(sae.W_dec[indices])
        promoted, suppressed = logits.topk(count, dim=1), logits.topk(count, dim=1, largest=False)
        for row, index in enumerate(indices):
            yield FeatureEffect(
                index=index,
                promoted=_tokens(promoted.indices[row], promoted.values[row], context),
                suppressed=_tokens(suppressed.indices[row], suppressed.values[row], context),
            )


def _tokens(ids: Int[Tensor, " k"], logits: Float[Tensor, " k"], context: MethodContext) -> tuple[PromotedToken, ...]:
    return tuple(
        PromotedToken(token_id=token, token=context.tokenizer.string(token), logit=logit)
        for token, logit in zip(ids.tolist(), logits.tolist(), strict=True)
    )
