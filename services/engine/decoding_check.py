"""Refusing a continuation that the model cannot run, before it meets a batch."""

import math

from torch import Tensor

from services.contracts.model import ModelFacts
from services.engine.check import InvalidRow, check_row, site_shape
from services.engine.decoder import within
from services.engine.decoding import Continuation, Onward, Sampled
from services.engine.row import FromRun, Intervention, Row
from services.engine.site_work import ATTENTION_SITES


def check_continuation(facts: ModelFacts, continuation: Continuation) -> None:
    """Raise InvalidRow unless prompt, interventions, stop tokens and sampling of `continuation` fit the model."""
    prompt = len(continuation.tokens)
    check_row(facts, Row(continuation.tokens))
    if continuation.max_new_tokens < 1:
        raise InvalidRow(f"max_new_tokens of {continuation.max_new_tokens}: at least 1 is needed")
    if not all(0 <= token < facts.vocabulary for token in continuation.stop):
        raise InvalidRow(
            f"stop tokens {sorted(continuation.stop)}: token ids of {facts.id} are 0..{facts.vocabulary - 1}"
        )
    if isinstance(continuation.sampling, Sampled):
        _check_sampling(continuation.sampling)
    reach = continuation.reach(facts.context)
    for intervention in continuation.interventions:
        _check_intervention(facts, intervention, prompt, reach)
    longest = (*continuation.tokens, *[0] * (reach - prompt))
    check_row(facts, Row(longest, tuple(within(facts, continuation, 0, reach))))


def _check_sampling(sampling: Sampled) -> None:
    if not (sampling.temperature > 0 and math.isfinite(sampling.temperature)):
        raise InvalidRow(f"a temperature of {sampling.temperature}: it must be positive and finite")
    if sampling.top_k is not None and sampling.top_k < 1:
        raise InvalidRow(f"top_k of {sampling.top_k}: at least 1 is needed")
    if not 0 < sampling.top_p <= 1:
        raise InvalidRow(f"top_p of {sampling.top_p}: it must be over 0, and at most 1")


def _check_intervention(facts: ModelFacts, intervention: Intervention | Onward, prompt: int, reach: int) -> None:
    """What the same intervention in a row would be allowed, and in a growing one is not."""
    site, value = intervention.site, intervention.value
    positions = (intervention.first,) if isinstance(intervention, Onward) else intervention.positions
    if positions is not None and not all(0 <= position < reach for position in positions):
        raise InvalidRow(f"positions {positions}: this continuation runs 0..{reach - 1}")
    if isinstance(value, FromRun) and (positions is None or max(positions, default=0) >= prompt):
        raise InvalidRow(f"activations of another run have their place in the prompt: positions 0..{prompt - 1}")
    if site.name in ATTENTION_SITES and not isinstance(value, int | float):
        raise InvalidRow(f"{site.name} of a growing text takes numbers: its keys are not yet counted")
    lasting = isinstance(intervention, Onward) or positions is None
    if lasting and isinstance(value, Tensor) and value.shape != site_shape(facts, site, reach):
        shape = site_shape(facts, site, reach)
        raise InvalidRow(f"a value of shape {tuple(value.shape)} at every position: expected {shape}")
