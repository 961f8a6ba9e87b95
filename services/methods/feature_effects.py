"""The tokens that a feature's decoder direction promotes and suppresses, read straight through W_U."""

from collections.abc import Iterator, Sequence

from jaxtyping import Float, Int
from torch import Tensor

from services.contracts.features import FeatureEffect, PromotedToken
from services.methods.context import MethodContext, SaeInUse
from services.methods.sae_places import SaePlaces

EFFECTS_AT_ONCE = 256


def effects_of(
    features: Sequence[int], count: int, in_use: SaeInUse, context: MethodContext
) -> Iterator[FeatureEffect]:
    """Logits that one unit of each feature adds per token, the final norm's gain applied, its scale left out."""
    if count == 0 or not features:
        return
    weights, places = context.weights(), SaePlaces(in_use.facts, context.model)
    for start in range(0, len(features), EFFECTS_AT_ONCE):
        indices = list(features[start : start + EFFECTS_AT_ONCE])
        logits = weights.unembedded(places.in_residual_stream(in_use.sae.W_dec[indices], weights))
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
