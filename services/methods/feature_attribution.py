"""Feature attribution: how much each feature of an SAE moves the metric (Marks et al. 2024, "Sparse Feature Circuits",
arXiv:2403.19647).

1. run every base run, and the source run where there is one, and take the activation at the SAE's site: see
   `feature_site` for what changes there;
2. effect of feature i ≈ Σ over positions of Δf_i (d_i · g), of the error Δε · g; g is ∂m/∂x at the base run, or
   (integrated gradients) its mean at x_base + α Δx, features and error moving together;
3. patch the whole site, the error, the top features and a sample of the others exactly, and state the differences; by
   position also some features and errors at one position each.

Effects are m(patched) − m(base) in the metric's units.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from services.contracts.attribution import AttributionResult, AttributionSpec
from services.contracts.feature_attribution import (
    AttributedFeature,
    CheckedEffect,
    FeatureAttribution,
    FeatureAttributionOutcome,
    FeatureCheck,
    FeatureRun,
    PositionCheck,
)
from services.contracts.inputs import TokenizedExample, TokenizedPair
from services.contracts.quadrature import nodes_of
from services.contracts.sweep import SweptPosition
from services.contracts.tensor import InlineTensor, Statistic
from services.engine.row import Capture, Gradients, Row
from services.methods.attribution_check import chosen
from services.methods.context import MethodContext, SaeInUse
from services.methods.feature_cells import cells_of, compared_by_position
from services.methods.feature_check import compared
from services.methods.feature_choice import warn_of_left_out
from services.methods.feature_estimates import Estimated, EstimatedFeature, estimated, look, ranked
from services.methods.feature_parts import Part, exact_effects
from services.methods.feature_site import Activation, Change, Subject, change_of
from services.methods.grouping import together
from services.methods.metric import finite, measure
from services.methods.statistics import RunningMean, estimate, scalar_estimate

VERSION = "2"

TOKENS_AT_ONCE = 512
STEP_TOKENS_AT_ONCE = 16_384

PARTS: tuple[Part, ...] = ("both", "error")
"""What is patched exactly before the features."""


def run(method: FeatureAttribution, spec: AttributionSpec, context: MethodContext) -> AttributionResult:
    """Rank the SAE's features by the magnitude of their mean effect, and check the estimates."""
    assert context.sae is not None, "the worker loads the SAE that the specification names"
    items: list[TokenizedPair | TokenizedExample] = [*context.inputs.pairs, *context.inputs.examples]
    subjects = [
        Subject.of(item, measure(spec.metric, item, context.inputs), method.mode, method.positions) for item in items
    ]
    found: list[Estimated] = []
    for group in together(subjects, lambda subject: len(subject.base.ids), TOKENS_AT_ONCE):
        found += _attributed(group, method, context, context.sae)
    features = ranked(found, context.sae)
    for feature in features[: method.top_k]:
        finite(feature.estimated, "an estimated effect")
    warn_of_left_out(found, context)
    exact, check, by_position = _checked(method, found, features, context.sae, context)
    return AttributionResult(
        attribution=_outcome(
            method,
            spec,
            found,
            features=features,
            exact=exact,
            check=check,
            check_by_position=by_position,
            in_use=context.sae,
        ),
        warnings=tuple(context.warnings),
        provenance=context.provenance("feature_attribution", VERSION, method.check.seed),
        usage=context.usage(),
    )


def _attributed(
    subjects: Sequence[Subject], method: FeatureAttribution, context: MethodContext, in_use: SaeInUse
) -> Iterator[Estimated]:
    """The estimates of a few subjects together."""
    first_order = method.estimate == "gradient_x_activation"
    seen = list(look(subjects, partial(change_of, in_use=in_use), in_use, context, gradients=first_order))
    gradients = [one.gradient for one in seen]
    if not first_order:
        gradients = list(_mean_gradients(subjects, [one.change for one in seen], method, context))
    for one, gradient in zip(seen, gradients, strict=True):
        yield estimated(one, gradient, in_use)


def _mean_gradients(
    subjects: Sequence[Subject], changes: Sequence[Change], method: FeatureAttribution, context: MethodContext
) -> list[Activation]:
    """By subject, ∂m/∂x averaged over the way from base to source by the quadrature."""
    means = [torch.zeros_like(change.whole, dtype=torch.float64) for change in changes]
    steps = (
        (index, alpha, weight)
        for index, change in enumerate(changes)
        for alpha, weight in nodes_of(method.quadrature, method.steps)
        if change.positions
    )
    at_once = max(1, STEP_TOKENS_AT_ONCE // max(len(subject.base.ids) for subject in subjects))
    while batch := list(islice(steps, at_once)):
        rows = [_step(subjects[index], changes[index], alpha) for index, alpha, _ in batch]
        for (index, _, weight), outcome in zip(batch, context.run(rows), strict=True):
            (gradient,) = outcome.gradients.values()
            means[index] += weight * gradient.flatten(1).double()
    return [mean.float() for mean in means]


def _step(subject: Subject, change: Change, alpha: float) -> Row:
    gradients = Gradients(subject.measured.objective, (Capture(change.site, change.positions),))
    readout = subject.measured.readout
    return Row(subject.base.ids, change.add(alpha * change.whole), readout=readout, gradients=gradients)


def _checked(
    method: FeatureAttribution,
    found: Sequence[Estimated],
    features: Sequence[EstimatedFeature],
    in_use: SaeInUse,
    context: MethodContext,
) -> tuple[Float64[np.ndarray, "subject part"], FeatureCheck, PositionCheck | None]:
    """The exact effects of `PARTS`, and the checks of the features' estimates and of those by position."""
    top, sampled = chosen(features, method.check)
    cells = list(cells_of(found, _reported_features(method, features))) if method.by_position else []
    top_cells, sampled_cells = chosen(cells, method.check)
    whole: list[Part] = [*PARTS, *(feature.index for feature in (*top, *sampled))]
    placed = [cell.part for cell in (*top_cells, *sampled_cells)]
    exact = exact_effects([(one.subject, one.change) for one in found], [*whole, *placed], in_use, context)
    check = compared(top, sampled, exact[:, len(PARTS) : len(whole)])
    if not method.by_position:
        return exact, check, None
    return (
        exact,
        check,
        compared_by_position(top_cells, sampled_cells, exact[:, len(whole) :], _positions(method, found)),
    )


def _positions(method: FeatureAttribution, found: Sequence[Estimated]) -> tuple[SweptPosition, ...]:
    return method.positions or found[0].subject.asked


def _reported_features(method: FeatureAttribution, features: Sequence[EstimatedFeature]) -> Tensor:
    return torch.tensor([feature.index for feature in features[: method.top_k]], dtype=torch.long)


def _outcome(
    method: FeatureAttribution,
    spec: AttributionSpec,
    found: Sequence[Estimated],
    *,
    features: Sequence[EstimatedFeature],
    exact: Float64[np.ndarray, "subject patch"],
    check: FeatureCheck,
    check_by_position: PositionCheck | None,
    in_use: SaeInUse,
) -> FeatureAttributionOutcome:
    indices = _reported_features(method, features)
    own = np.stack([one.of_features(indices).sum(axis=1) for one in found])
    integrated = method.estimate == "integrated_gradients"
    by_position, error_by_position = _by_position(found, indices) if method.by_position else (None, None)
    return FeatureAttributionOutcome(
        site=in_use.facts.site,
        layer=in_use.facts.layer,
        source=method.source,
        mode=method.mode if method.takes_pairs() else None,
        estimate=method.estimate,
        steps=method.steps if integrated else None,
        quadrature=method.quadrature if integrated else None,
        features=tuple(
            AttributedFeature(index=int(index), effect=scalar_estimate(own[:, place]))
            for place, index in enumerate(indices.tolist())
        ),
        changed=len(features),
        error=_compared([float(one.of_error().sum()) for one in found], exact[:, 1]),
        total=_compared([one.total for one in found], exact[:, 0]),
        positions=_positions(method, found) if method.by_position else None,
        by_position=by_position,
        error_by_position=error_by_position,
        check_by_position=check_by_position,
        runs=tuple(
            _reported(one, float(replaced), values if spec.per_example else None)
            for one, replaced, values in zip(found, exact[:, 0], own, strict=True)
        ),
        check=check,
    )


def _by_position(
    found: Sequence[Estimated], indices: Tensor
) -> tuple[InlineTensor | Statistic, InlineTensor | Statistic]:
    features = RunningMean()
    for one in found:
        features.add(one.of_features(indices))
    return features.estimate(("feature", "position")), estimate(
        np.stack([one.of_error() for one in found]), ("position",)
    )


def _compared(estimated: Sequence[float], exact: Float64[np.ndarray, " subject"]) -> CheckedEffect:
    values = np.array(estimated)
    return CheckedEffect(
        estimated=scalar_estimate(values), exact=scalar_estimate(exact), gap=scalar_estimate(exact - values)
    )


def _reported(one: Estimated, exact: float, features: Float64[np.ndarray, " feature"] | None) -> FeatureRun:
    return FeatureRun(
        tokens=one.subject.base,
        source_tokens=one.subject.source,
        metric=one.metric,
        source_metric=one.source_metric,
        left_out=one.change.left_out,
        error=float(one.of_error().sum()),
        sum=finite(one.total, "the sum of the estimates"),
        exact=exact,
        features=None if features is None else tuple(features.tolist()),
    )
