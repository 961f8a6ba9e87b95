"""Refusing a row that the model cannot run, before it meets a batch."""

import math
from collections.abc import Iterable

import torch

from services.contracts.model import ModelFacts
from services.contracts.site import HEAD_SITES, SiteName
from services.engine.objective import WeightedProbabilities
from services.engine.reading import positions_read
from services.engine.readout import Divergence, Loss, Readout, TextLogProbs, TokenLogits, TokenLogProbs, TopK
from services.engine.row import FeatureChange, FromRun, Gradients, Intervention, Row, Site
from services.engine.site_work import ATTENTION_SITES

_KV_SITES = (SiteName.K, SiteName.V)


class InvalidRow(ValueError):
    """A row that this model cannot run; the message says which value is wrong and what is allowed."""


def check_row(facts: ModelFacts, row: Row) -> None:
    """Raise InvalidRow unless every token, position, site and value of `row` fits the model."""
    _check_tokens(facts, row.tokens)
    for intervention in row.interventions:
        _check_site(facts, intervention.site, write=True)
        _check_positions(intervention.positions, len(row.tokens))
        _check_value(facts, intervention, len(row.tokens))
    for capture in row.captures:
        _check_site(facts, capture.site, write=False)
        _check_positions(capture.positions, len(row.tokens))
    _check_readout(facts, row)
    if row.gradients is not None:
        _check_gradients(facts, row, row.gradients)


def site_shape(facts: ModelFacts, site: Site, length: int) -> tuple[int, ...]:
    """The axes of an activation at `site` after the position, in a row of `length` tokens."""
    heads = () if site.head is not None else (facts.kv_heads if site.name in _KV_SITES else facts.heads,)
    match site.name:
        case SiteName.Q | SiteName.K | SiteName.V | SiteName.Z:
            return (*heads, facts.d_head)
        case _ if site.name in ATTENTION_SITES:
            return (*heads, length)
        case SiteName.MLP_POST:
            return (facts.d_mlp,)
        case _:
            return (facts.d_model,)


def _check_tokens(facts: ModelFacts, tokens: tuple[int, ...]) -> None:
    if not 0 < len(tokens) <= facts.context:
        raise InvalidRow(f"a row of {len(tokens)} tokens: {facts.id} reads 1 to {facts.context}")
    if min(tokens) < 0 or max(tokens) >= facts.vocabulary:
        raise InvalidRow(f"token ids of {facts.id} are 0..{facts.vocabulary - 1}")


def _check_site(facts: ModelFacts, site: Site, *, write: bool) -> None:
    known = next((known for known in facts.sites if known.name is site.name), None)
    if known is not None and not (known.writable if write else known.readable):
        raise InvalidRow(f"{site.name} of {facts.id} cannot be {'written' if write else 'read'}: {known.reason}")
    if (site.layer is None) != (site.name is SiteName.EMBED):
        raise InvalidRow(f"{site.name} with layer {site.layer}: embed has no layer, every other site needs one")
    if site.layer is not None and not 0 <= site.layer < facts.layers:
        raise InvalidRow(f"layer {site.layer} does not exist: {facts.id} has layers 0..{facts.layers - 1}")
    heads = facts.kv_heads if site.name in _KV_SITES else facts.heads
    if site.head is not None and (site.name not in HEAD_SITES or not 0 <= site.head < heads):
        raise InvalidRow(f"head {site.head} of {site.name} does not exist: heads are 0..{heads - 1} of head sites")


def _check_positions(positions: Iterable[int] | None, length: int) -> None:
    if positions is None:
        return
    given = tuple(positions)
    if not given or min(given) < 0 or max(given) >= length or len(set(given)) < len(given):
        raise InvalidRow(f"positions {given}: they must be different ones of 0..{length - 1}")


def _check_value(facts: ModelFacts, intervention: Intervention, length: int) -> None:
    value = intervention.value
    if isinstance(value, FeatureChange) or intervention.operation == "change_features":
        _check_features(facts, intervention, length)
    elif intervention.operation == "project_out" and not _is_direction(intervention):
        raise InvalidRow("what is projected out is a tensor, nowhere zero, at a site that is no attention site")
    elif isinstance(value, FromRun):
        _check_tokens(facts, value.tokens)
        reach = length if intervention.positions is None else max(intervention.positions) + 1
        if reach > len(value.tokens):
            raise InvalidRow(f"a run of {len(value.tokens)} tokens has nothing at position {reach - 1}")
        if intervention.site.name in ATTENTION_SITES and len(value.tokens) != length:
            raise InvalidRow(f"{intervention.site.name} of a run of {len(value.tokens)} tokens in one of {length}")
    elif isinstance(value, torch.Tensor):
        shape = site_shape(facts, intervention.site, length)
        positions = length if intervention.positions is None else len(intervention.positions)
        if value.shape not in (shape, (positions, *shape)):
            raise InvalidRow(f"a value of shape {tuple(value.shape)}: expected {shape} or {(positions, *shape)}")
        if not bool(torch.isfinite(value).all()):
            raise InvalidRow("a value holds NaN or infinity")
    elif not math.isfinite(value) and not _is_knockout(intervention):
        raise InvalidRow(f"a value of {value}: it must be finite, or minus infinity to set attn_scores to")


def _is_direction(intervention: Intervention) -> bool:
    value = intervention.value
    if not isinstance(value, torch.Tensor) or intervention.site.name in ATTENTION_SITES:
        return False
    return bool((value.norm(dim=-1) > 0).all())


def _check_features(facts: ModelFacts, intervention: Intervention, length: int) -> None:
    change, site = intervention.value, intervention.site
    if not isinstance(change, FeatureChange) or intervention.operation != "change_features":
        raise InvalidRow(f"{intervention.operation} and its value do not go together: features change by one alone")
    if site.name in ATTENTION_SITES:
        raise InvalidRow(f"{site.name} has no features")
    features, width = change.dictionary.W_dec.shape
    if width != math.prod(site_shape(facts, site, length)):
        raise InvalidRow(f"a dictionary of width {width} at {site.name}: {site_shape(facts, site, length)}")
    for index, amount in (*change.added, *change.clamped):
        if not 0 <= index < features or not math.isfinite(amount):
            raise InvalidRow(f"feature {index} by {amount}: features are 0..{features - 1}, and amounts finite")
    for index in change.projected_out:
        if not 0 <= index < features or not bool(change.dictionary.W_dec[index].norm() > 0):
            raise InvalidRow(f"feature {index} projected out: features are 0..{features - 1}, their rows not zero")


def _is_knockout(intervention: Intervention) -> bool:
    """Scores of minus infinity: no attention there."""
    return (
        intervention.site.name is SiteName.ATTN_SCORES
        and intervention.operation == "set"
        and isinstance(intervention.value, float)
        and intervention.value == -math.inf
    )


def _check_readout(facts: ModelFacts, row: Row) -> None:
    readout = row.readout
    if readout is None:
        return
    _check_positions(positions_read(readout), len(row.tokens))
    if isinstance(readout, TokenLogits | TokenLogProbs) and readout.tokens is not None:
        _check_tokens(facts, readout.tokens)
    if isinstance(readout, Loss | TextLogProbs):
        _check_tokens(facts, readout.targets)
    if isinstance(readout, Divergence):
        _check_tokens(facts, readout.reference)
        _check_positions((readout.position,), len(readout.reference))


def _check_gradients(facts: ModelFacts, row: Row, gradients: Gradients) -> None:
    if not gradients.sites:
        raise InvalidRow("gradients at no site: name at least one")
    for capture in gradients.sites:
        _check_site(facts, capture.site, write=False)
        _check_site(facts, capture.site, write=True)
        _check_positions(capture.positions, len(row.tokens))
    if row.readout is None or isinstance(row.readout, TopK):
        raise InvalidRow("gradients are of numbers: the row needs a readout that yields some")
    weights, numbers = gradients.objective.weights, _numbers_read(facts, row.readout)
    if len(weights) != numbers or not all(map(math.isfinite, weights)):
        raise InvalidRow(f"an objective with weights {weights}: expected {numbers} finite ones, as the readout yields")
    if isinstance(gradients.objective, WeightedProbabilities) and not isinstance(row.readout, TokenLogProbs):
        raise InvalidRow("an objective of probabilities needs log probabilities as its readout")


def _numbers_read(facts: ModelFacts, readout: Readout) -> int:
    """How many numbers a readout yields."""
    if isinstance(readout, TextLogProbs):
        return len(readout.targets)
    if not isinstance(readout, TokenLogits | TokenLogProbs):
        return 1
    return facts.vocabulary if readout.tokens is None else len(readout.tokens)
