"""Feature ablation: take features of an SAE out of the run, one at a time, and read what the metric loses.

1. run every example, and take the activation x = Σ f_i d_i + b_dec + ε at the SAE's site and (for the estimates) its
   gradient; for a mean, run the references as far as the SAE, and average their features;
2. choose the features: those named, and the strongest by the first-order estimate (f_source − f_i)(d_i · g);
3. one run a feature adds (f_source − f_i) d_i, at all positions or at one; one more changes all features together;
4. effect = m(ablated) − m(whole). ε stays as it is throughout.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from services.contracts.ablation import AblationSpec
from services.contracts.errors import ErrorCode, JobFailed
from services.contracts.feature_ablation import (
    AllFeatures,
    FeatureAblatedExample,
    FeatureAblation,
    FeatureAblationResult,
)
from services.contracts.references import Over
from services.methods.context import MethodContext, SaeInUse
from services.methods.feature_choice import ChangedParts, chosen_features, promoted_logits, warn_of_left_out
from services.methods.feature_estimates import Estimated, changed_features, estimated, look
from services.methods.feature_parts import Part
from services.methods.feature_site import Activation, Change, Subject, change_of_features
from services.methods.grouping import together
from services.methods.metric import measure
from services.methods.references import groups, load

VERSION = "1"

TOKENS_AT_ONCE = 512

PARTS: tuple[Part, ...] = ("features",)


@dataclass(frozen=True, eq=False)
class Sources:
    """The features that take the place of a run's: by position of the prompt, or one for all; those not `known` do
    not."""

    features: Float[Tensor, "#position d_sae"]
    known: Bool[Tensor, "#position"]
    in_use: SaeInUse

    def change(self, subject: Subject, base: Activation, source: Activation | None) -> Change:
        """The ablation of all features of an example's run."""
        assert source is None, "an ablation has no other run"
        at = list(subject.positions) if len(self.features) > 1 else [0]
        return change_of_features(subject, base, self.features[at], self.known[at], self.in_use)


def run(method: FeatureAblation, spec: AblationSpec, context: MethodContext) -> FeatureAblationResult:
    """Ablate the chosen features of every example. Effects are in the metric's units; negative means that it fell."""
    assert context.sae is not None, "the worker loads the SAE that the specification names"
    in_use, estimates = context.sae, method.estimates(spec.metric)
    found = _found(method, spec, context, in_use)
    features = chosen_features(method, found, in_use)
    changed = ChangedParts.of(
        found, PARTS, features, in_use, context, by_position=method.by_position, estimates=estimates
    )
    warn_of_left_out(found, context, ", here or in all references" if method.source == "mean" else "")
    effects, first_order = changed.of_features()
    all_exact, all_estimated = changed.of_part(0)
    return FeatureAblationResult(
        sae=in_use.facts.id,
        site=in_use.facts.site,
        layer=in_use.facts.layer,
        source=method.source,
        over=method.averaged_over(context.inputs),
        features=features,
        changed=len(changed_features(found)),
        positions=(method.positions or found[0].subject.asked) if method.by_position else None,
        examples=_examples(found, changed, spec),
        effects=effects,
        estimated=first_order,
        together=AllFeatures(effects=all_exact, estimated=all_estimated),
        check=changed.check(),
        promoted_logits=promoted_logits(method, features, in_use, context),
        warnings=tuple(context.warnings),
        provenance=context.provenance("feature_ablation", VERSION),
        usage=context.usage(),
    )


def _found(method: FeatureAblation, spec: AblationSpec, context: MethodContext, in_use: SaeInUse) -> list[Estimated]:
    sources = _sources(method, context, in_use)
    subjects = [
        Subject.of(example, measure(spec.metric, example, context.inputs), "", method.positions)
        for example in context.inputs.examples
    ]
    gradients = method.estimates(spec.metric)
    return [
        estimated(seen, seen.gradient, in_use)
        for group in together(subjects, lambda subject: len(subject.base.ids), TOKENS_AT_ONCE)
        for seen in look(group, sources.change, in_use, context, gradients=gradients)
    ]


def _sources(method: FeatureAblation, context: MethodContext, in_use: SaeInUse) -> Sources:
    over = method.averaged_over(context.inputs)
    if over is None:
        nothing = torch.zeros(1, in_use.sae.d_sae).to(in_use.sae.W_dec)
        return Sources(nothing, torch.ones(1, dtype=torch.bool, device=nothing.device), in_use)
    return mean_features(over, context, in_use)


def mean_features(over: Over, context: MethodContext, in_use: SaeInUse) -> Sources:
    """Features averaged over the references' tokens within the norm threshold; raises JobFailed where there is none."""
    sae, site, layer = in_use.sae, in_use.facts.site, in_use.facts.layer
    sums, counts = torch.zeros(1).to(sae.W_dec.device, torch.float64), torch.zeros(1).to(sae.W_dec.device)
    for group in groups(context.inputs.references, site, (layer,), context):
        for taken in load(group, site, (layer,), context):
            x = taken[layer].flatten(1).to(sae.W_enc)
            counted = sae.within_norm(x)
            features = sae.encode(x).double() * counted[:, None]
            sums = sums + (features if over == "position" else features.sum(0, keepdim=True))
            counts = counts + (counted if over == "position" else counted.sum(0, keepdim=True))
    if not bool(counts.any()):
        message = "every token of the references is over the SAE's norm threshold: give longer references"
        raise JobFailed(ErrorCode.METHOD_FAILED, message)
    return Sources((sums / counts.clamp(min=1)[:, None]).to(sae.W_dec), counts > 0, in_use)


def _examples(
    found: Sequence[Estimated], changed: ChangedParts, spec: AblationSpec
) -> tuple[FeatureAblatedExample, ...]:
    reported = []
    for number, one in enumerate(found):
        effects, first_order = changed.of_subject(number) if spec.per_example else (None, None)
        reported.append(
            FeatureAblatedExample(
                tokens=one.subject.base,
                baseline=one.metric,
                left_out=one.change.left_out,
                effects=effects,
                estimated=first_order,
            )
        )
    return tuple(reported)
