"""Results of an SAE's features patched, ablated or given their direct logit terms, as a worker stores them."""

from services.contracts.attribution import AttributionResult
from services.contracts.direct_logit_attribution import DirectLogitOutcome
from services.contracts.direct_logit_features import FeatureContribution, FeatureSplit, SplitExample
from services.contracts.feature_ablation import AllFeatures, FeatureAblatedExample, FeatureAblationResult
from services.contracts.feature_patching import FeaturePatchedPair, FeaturePatchingResult, PartEffect, PatchedParts
from services.contracts.feature_site import ChosenFeature, EstimateCheck
from services.contracts.result import Baselines, PairTokens, SaeProvenance
from services.contracts.site import SiteName
from services.contracts.tensor import InlineTensor, ScalarStatistic
from tests.api.catalogue import SAE
from tests.api.specs import TOKENS, USAGE, attribution_result, provenance

_SAE = SaeProvenance(id=SAE, sha256="2" * 64)
_CHOSEN = (ChosenFeature(index=3, chosen="given"), ChosenFeature(index=5, chosen="top"))
_EFFECTS = InlineTensor.of([1.0, 2.0], ("feature",))
_ALONE = InlineTensor.of(1.0, ())


def feature_patching_result() -> FeaturePatchingResult:
    """At the clean run of a divergence: without estimates."""
    pair = FeaturePatchedPair(
        tokens=PairTokens(clean=TOKENS, corrupted=TOKENS),
        differing_positions=(1,),
        baselines=Baselines(clean=3.0, corrupted=-4.0),
        left_out=(0,),
    )
    part = PartEffect(effects=_ALONE, normalized=_ALONE, estimated=None)
    return FeaturePatchingResult(
        sae=SAE,
        site=SiteName.RESID_POST,
        layer=1,
        mode="noising",
        features=_CHOSEN,
        changed=9,
        pairs=(pair,),
        effects=_EFFECTS,
        normalized=_EFFECTS,
        estimated=None,
        parts=PatchedParts(features=part, error=part, both=part),
        check=None,
        provenance=provenance("feature_patching", _SAE),
        usage=USAGE,
    )


def feature_ablation_result() -> FeatureAblationResult:
    return FeatureAblationResult(
        sae=SAE,
        site=SiteName.RESID_POST,
        layer=1,
        source="mean",
        over="all",
        features=_CHOSEN,
        changed=9,
        examples=(FeatureAblatedExample(tokens=TOKENS, baseline=1.0, left_out=()),),
        effects=_EFFECTS,
        estimated=_EFFECTS,
        together=AllFeatures(effects=_ALONE, estimated=_ALONE),
        check=EstimateCheck(rank_correlation=1.0, largest_error=0.5),
        provenance=provenance("feature_ablation", _SAE),
        usage=USAGE,
    )


def feature_terms_result() -> AttributionResult:
    result = attribution_result()
    assert isinstance(result.attribution, DirectLogitOutcome)
    one = ScalarStatistic(mean=1.0, standard_error=None, count=1)
    feature = FeatureContribution(index=3, activation=one, contribution=one, removed=one, removed_at_held_scale=one)
    split = FeatureSplit(
        sae=SAE,
        site=SiteName.RESID_POST,
        layer=1,
        features=(feature,),
        active=4,
        other_features=one,
        b_dec=one,
        error=one,
        over_norm=one,
        outside=result.attribution.terms,
        examples=(SplitExample(over_norm=False, sum_of_terms=1.0, gap=0.0),),
    )
    return result.model_copy(update={"attribution": result.attribution.model_copy(update={"split": split})})
