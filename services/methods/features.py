"""SAE features on prompts (Bricken et al. 2023; Cunningham et al. 2023, arXiv:2309.08600).

1. run each prompt up to the SAE's layer and take the activations at its site (a transcoder's also where it writes);
2. leave out tokens whose norm is over the SAE's threshold: attention sinks, on which it was not trained;
3. encode, only the features asked for where nothing needs the others; report the strongest per token and prompt;
4. decode, where asked, and say how much of the activations came back;
5. for every feature reported, the tokens that its decoder direction promotes and suppresses through W_U.

A contrast of two sets of prompts, or a search by marked tokens, takes the place of reporting each prompt.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from services.contracts.features import (
    ActiveFeature,
    FeaturesResult,
    FeaturesSpec,
    PromptFeature,
    PromptFeatures,
    Reconstruction,
    TokenFeatures,
)
from services.contracts.tensor import InlineTensor
from services.methods.context import MethodContext
from services.methods.feature_contrast import contrast_features
from services.methods.feature_effects import effects_of
from services.methods.feature_encoding import Encoded, Features, encode
from services.methods.feature_search import search_features
from services.saes.sae import Sae

VERSION = "3"


def run(spec: FeaturesSpec, context: MethodContext) -> FeaturesResult:
    """Features of the prompts; activations are in the SAE's own units, positions count from 0."""
    assert context.sae is not None, "the worker loads the SAE that the specification names"
    sae, facts = context.sae.sae, context.sae.facts
    prompts: tuple[PromptFeatures, ...] = ()
    contrast, search = None, None
    if spec.contrast is not None:
        contrast = contrast_features(spec, spec.contrast, context, context.sae)
        shown = [feature.index for feature in contrast.features]
    elif spec.search is not None:
        search = search_features(spec, spec.search, context, context.sae)
        shown = [feature.index for feature in search.features]
    else:
        encoded = encode(spec, context.inputs.prompts, context, context.sae)
        prompts = tuple(_report(prompt, spec, sae) for prompt in encoded)
        shown = sorted({feature.index for prompt in prompts for feature in prompt.top})
    return FeaturesResult(
        sae=spec.sae,
        layer=facts.layer,
        site=facts.site,
        output=facts.output,
        features=spec.features,
        prompts=prompts,
        contrast=contrast,
        search=search,
        effects=tuple(effects_of(shown, spec.promoted_logits, context.sae, context)),
        effects_per_token_scale=facts.scales_tokens,
        warnings=tuple(context.warnings),
        provenance=context.provenance("features", VERSION),
        usage=context.usage(),
    )


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
    """MSE per dimension; explained variance 1 − Σ|y − ŷ|² / Σ|y − reference|², y being what it is to rebuild."""
    assert encoded.target is not None, "what is encoded whole is also rebuilt"
    reference = "prompt_mean" if sae.mean_activation is None else "sae_mean"
    x, y = encoded.activations[encoded.counted], encoded.target[encoded.counted].double()
    if not len(y):
        return Reconstruction(tokens=0, mse=None, explained_variance=None, reference=reference, mean_l0=None)
    features = every[encoded.counted]
    error = (y - sae.decode(features, x).double()).square().sum()
    mean = y.mean(dim=0) if sae.mean_activation is None else sae.mean_activation.double()
    variance = (y - mean).square().sum()
    return Reconstruction(
        tokens=len(y),
        mse=float(error / y.numel()),
        explained_variance=float(1 - error / variance) if variance > 0 else None,
        reference=reference,
        mean_l0=float((features > 0).sum(dim=1).double().mean()),
    )
