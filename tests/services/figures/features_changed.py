"""Results in which features of an SAE were patched, ablated, or given their direct logit terms."""

import numpy as np

from services.contracts.direct_logit_attribution import DirectLogitOutcome
from services.contracts.direct_logit_features import FeatureContribution, FeatureSplit, SplitExample
from services.contracts.direct_logit_terms import DirectLogitTerms
from services.contracts.feature_ablation import AllFeatures, FeatureAblatedExample, FeatureAblationResult
from services.contracts.feature_patching import FeaturePatchedPair, FeaturePatchingResult, PartEffect, PatchedParts
from services.contracts.feature_site import ChosenFeature, EstimateCheck
from services.contracts.features import FeatureEffect, PromotedToken
from services.contracts.result import Baselines, PairTokens, SaeProvenance
from services.contracts.site import SiteName
from services.contracts.tensor import Estimate, InlineTensor, ScalarStatistic
from tests.services.figures.samples import CLEAN, CORRUPTED, about, estimate, ramp, tokens

SAE = SaeProvenance(id="tiny-sae", sha256="2" * 64)
_PARIS = PromotedToken(token_id=1, token=" Paris", logit=1.0)
CHOSEN = (ChosenFeature(index=7, chosen="given"), *(ChosenFeature(index=index, chosen="top") for index in (42, 3)))


def patching(
    count: int = 1, *, by_position: bool = False, own: bool = False, slope: bool = True
) -> FeaturePatchingResult:
    """Three features, one of them given; `slope`: with first-order estimates."""
    dims = ("feature", "position") if by_position else ("feature",)
    values = np.nan_to_num(ramp(3, len(CLEAN)) if by_position else ramp(3))
    part = _part(count, by_position=by_position, slope=slope)
    pair = FeaturePatchedPair(
        tokens=PairTokens(clean=tokens(), corrupted=tokens(CORRUPTED)),
        differing_positions=(6,),
        baselines=Baselines(clean=3.0, corrupted=-4.0),
        left_out=(0,),
        effects=InlineTensor.of(values, dims) if own else None,
        estimated=InlineTensor.of(values / 2, dims) if own and slope else None,
    )
    return FeaturePatchingResult(
        sae="tiny-sae",
        site=SiteName.RESID_POST,
        layer=1,
        mode="denoising",
        features=CHOSEN,
        changed=9,
        positions=tuple(range(len(CLEAN))) if by_position else None,
        pairs=(pair,) * count,
        effects=estimate(values * 7, dims, count),
        normalized=estimate(values, dims, count),
        estimated=estimate(values * 6, dims, count) if slope else None,
        parts=PatchedParts(features=part, error=part, both=part),
        check=EstimateCheck(rank_correlation=0.9, largest_error=0.25) if slope else None,
        promoted_logits=(FeatureEffect(index=42, promoted=(_PARIS,), suppressed=()),),
        **about("feature_patching", SAE),
    )


def _part(count: int, *, by_position: bool, slope: bool) -> PartEffect:
    dims, values = (("position",), np.ones(len(CLEAN))) if by_position else ((), np.ones(()))
    one: Estimate = estimate(values, dims, count)
    return PartEffect(effects=one, normalized=one, estimated=one if slope else None)


def ablation(count: int = 1, *, by_position: bool = False, own: bool = False) -> FeatureAblationResult:
    dims = ("feature", "position") if by_position else ("feature",)
    values = np.nan_to_num(ramp(3, len(CLEAN)) if by_position else ramp(3))
    part = _part(count, by_position=by_position, slope=True)
    example = FeatureAblatedExample(
        tokens=tokens(), baseline=3.0, left_out=(), effects=InlineTensor.of(values, dims) if own else None
    )
    return FeatureAblationResult(
        sae="tiny-sae",
        site=SiteName.RESID_POST,
        layer=1,
        source="mean",
        over="position",
        features=CHOSEN,
        changed=9,
        positions=tuple(range(len(CLEAN))) if by_position else None,
        examples=(example,) * count,
        effects=estimate(values, dims, count),
        estimated=estimate(values / 2, dims, count),
        together=AllFeatures(effects=part.effects, estimated=part.estimated),
        check=EstimateCheck(rank_correlation=0.9, largest_error=0.25),
        **about("feature_ablation", SAE),
    )


def split(outcome: DirectLogitOutcome, *, listed: bool = True) -> DirectLogitOutcome:
    """The outcome with two features split off the stream behind layer 1; `listed`: of tokens within the norm."""
    count = len(outcome.examples)

    def one(mean: float) -> ScalarStatistic:
        return ScalarStatistic(mean=mean, standard_error=0.1 if count > 1 else None, count=count)

    features = tuple(
        FeatureContribution(
            index=index,
            activation=one(4.0),
            contribution=one(value),
            removed=one(0.1 - value),
            removed_at_held_scale=one(-value),
        )
        for index, value in ((7, 1.5), (42, -0.5))
    )
    outside: DirectLogitTerms = outcome.terms
    found = FeatureSplit(
        sae="tiny-sae",
        site=SiteName.RESID_POST,
        layer=1,
        features=features if listed else (),
        active=9 if listed else 0,
        other_features=one(0.25),
        b_dec=one(0.5),
        error=one(-0.25),
        over_norm=one(0.0 if listed else 2.0),
        outside=outside,
        examples=(SplitExample(over_norm=not listed, sum_of_terms=3.0, gap=0.0),) * count,
    )
    return outcome.model_copy(update={"split": found})
