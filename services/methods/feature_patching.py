"""Feature patching: activation patching of an SAE's features, one a run (Marks et al. 2024, arXiv:2403.19647).

1. run both prompts of every pair, and take the activation at the SAE's site and (for the estimates) its gradient at the
   base run: see `feature_site` for what changes there;
2. choose the features: those named, and the strongest by the first-order estimate Δf_i (d_i · g);
3. one run a feature adds Δf_i d_i to the base run's activation, at all positions or at one; further runs all features,
   the error ε alone, and both;
4. effect = m(patched) − m(unpatched); normalized = effect / (m(other) − m(unpatched)), over many pairs of means.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np

from services.contracts.feature_patching import (
    FeaturePatchedPair,
    FeaturePatching,
    FeaturePatchingResult,
    PartEffect,
    PatchedParts,
)
from services.contracts.patching import PatchingSpec
from services.contracts.result import Baselines, PairTokens
from services.methods.context import MethodContext, SaeInUse
from services.methods.feature_choice import ChangedParts, chosen_features, promoted_logits, warn_of_left_out
from services.methods.feature_estimates import Estimated, changed_features, estimated, look
from services.methods.feature_parts import Part
from services.methods.feature_site import Subject, change_of
from services.methods.grouping import together
from services.methods.metric import measure
from services.methods.patched import normalize
from services.methods.statistics import PairScalars

VERSION = "1"

TOKENS_AT_ONCE = 512

PARTS: tuple[Part, ...] = ("features", "error", "both")


def run(method: FeaturePatching, spec: PatchingSpec, context: MethodContext) -> FeaturePatchingResult:
    """Patch the chosen features of every pair. Effects are in the metric's units; positive means that it rose."""
    assert context.sae is not None, "the worker loads the SAE that the specification names"
    in_use, estimates = context.sae, method.estimates(spec.metric)
    found = _found(method, spec, context, in_use)
    features = chosen_features(method, found, in_use)
    changed = ChangedParts.of(
        found, PARTS, features, in_use, context, by_position=method.by_position, estimates=estimates
    )
    warn_of_left_out(found, context)
    base = np.array([one.metric for one in found])
    other = np.array([one.source_metric for one in found], dtype=np.float64)
    effects, first_order = changed.of_features()
    return FeaturePatchingResult(
        sae=in_use.facts.id,
        site=in_use.facts.site,
        layer=in_use.facts.layer,
        mode=method.mode,
        features=features,
        changed=len(changed_features(found)),
        positions=(method.positions or found[0].subject.asked) if method.by_position else None,
        pairs=_pairs(found, changed, spec, context),
        effects=effects,
        normalized=normalize(changed.exact[:, len(PARTS) :], base, other, ("feature", *changed.dims), context),
        estimated=first_order,
        parts=_parts(changed, base, other, context),
        check=changed.check(),
        promoted_logits=promoted_logits(method, features, in_use, context),
        warnings=tuple(context.warnings),
        provenance=context.provenance("feature_patching", VERSION),
        usage=context.usage(),
    )


def _found(method: FeaturePatching, spec: PatchingSpec, context: MethodContext, in_use: SaeInUse) -> list[Estimated]:
    subjects = [
        Subject.of(pair, measure(spec.metric, pair, context.inputs), method.mode, method.positions)
        for pair in context.inputs.pairs
    ]
    change, gradients = partial(change_of, in_use=in_use), method.estimates(spec.metric)
    return [
        estimated(seen, seen.gradient, in_use)
        for group in together(subjects, lambda subject: len(subject.base.ids), TOKENS_AT_ONCE)
        for seen in look(group, change, in_use, context, gradients=gradients)
    ]


def _parts(changed: ChangedParts, base: PairScalars, other: PairScalars, context: MethodContext) -> PatchedParts:
    def part(number: int) -> PartEffect:
        effects, first_order = changed.of_part(number)
        normalized = normalize(changed.exact[:, number], base, other, changed.dims, context)
        return PartEffect(effects=effects, normalized=normalized, estimated=first_order)

    return PatchedParts(features=part(0), error=part(1), both=part(2))


def _pairs(
    found: Sequence[Estimated], changed: ChangedParts, spec: PatchingSpec, context: MethodContext
) -> tuple[FeaturePatchedPair, ...]:
    reported = []
    for number, (pair, one) in enumerate(zip(context.inputs.pairs, found, strict=True)):
        assert one.source_metric is not None, "a pair has a source run"
        metrics = (
            (one.source_metric, one.metric) if spec.method.mode == "denoising" else (one.metric, one.source_metric)
        )
        effects, first_order = changed.of_subject(number) if spec.per_pair else (None, None)
        reported.append(
            FeaturePatchedPair(
                tokens=PairTokens(clean=pair.clean, corrupted=pair.corrupted),
                differing_positions=pair.differing,
                baselines=Baselines(clean=metrics[0], corrupted=metrics[1]),
                left_out=one.change.left_out,
                effects=effects,
                estimated=first_order,
            )
        )
    return tuple(reported)
