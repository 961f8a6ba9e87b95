"""One good job of each kind on the tiny catalogue, and results as a worker stores them."""

from typing import Any

import numpy as np

from services.contracts.ablation import AblatedExample, AblationResult
from services.contracts.attribution import AttributionResult
from services.contracts.direct_logit_attribution import AttributedExample, DirectLogitOutcome
from services.contracts.direct_logit_terms import DirectLogitTerms
from services.contracts.features import (
    ActiveFeature,
    FeatureEffect,
    FeaturesResult,
    PromotedToken,
    PromptFeature,
    PromptFeatures,
    Reconstruction,
    TokenFeatures,
)
from services.contracts.intervention import (
    ChangedExample,
    InterventionResult,
    MetricChange,
    PredictedToken,
    PredictedTokens,
)
from services.contracts.patching import PatchedPair, PatchingResult
from services.contracts.result import Baselines, PairTokens, PromptTokens, Provenance, SaeProvenance, Usage, Versions
from services.contracts.site import SiteName
from services.contracts.tensor import InlineTensor, ScalarStatistic, Statistic
from tests.api.catalogue import MODEL, SAE

CLEAN = "When John and Mary went to the shops, John gave the bag to"
CORRUPTED = "When John and Mary went to the shops, Mary gave the bag to"

PATCHING: dict[str, Any] = {
    "kind": "patching",
    "model": MODEL,
    "method": {"type": "activation_patching", "site": "resid_pre"},
    "pairs": [{"clean": CLEAN, "corrupted": CORRUPTED, "answer": " Mary", "foil": " John"}],
}
ATTRIBUTION: dict[str, Any] = {
    "kind": "attribution",
    "model": MODEL,
    "method": {"type": "direct_logit_attribution"},
    "examples": [{"prompt": CLEAN, "answer": " Mary", "foil": " John"}],
}
PATHS: dict[str, Any] = PATCHING | {
    "method": {"type": "path_patching", "senders": ["a0.h0"], "receivers": ["a1.h0<q>", "m1"]},
}
ABLATION: dict[str, Any] = {
    "kind": "ablation",
    "model": MODEL,
    "method": {"type": "resample_ablation", "site": "z", "references": [CORRUPTED], "seed": 3},
    "examples": [{"prompt": CLEAN, "answer": " Mary", "foil": " John"}],
}
FEATURE_PATCHING: dict[str, Any] = PATCHING | {
    "method": {"type": "feature_patching", "sae": SAE, "features": [3], "top_k": 2, "mode": "noising"},
}
FEATURE_ABLATION: dict[str, Any] = ABLATION | {
    "method": {"type": "feature_ablation", "sae": SAE, "source": "mean", "references": [CORRUPTED], "over": "all"},
}
FEATURE_TERMS: dict[str, Any] = ATTRIBUTION | {
    "method": {"type": "direct_logit_attribution", "sae": SAE, "top_k": 2},
}
INTERVENTION: dict[str, Any] = {
    "kind": "intervention",
    "model": MODEL,
    "examples": [{"prompt": CLEAN, "answer": " Mary", "foil": " John"}],
    "interventions": [
        {"site": "z", "layer": 1, "head": 0, "positions": [-1], "operation": "scale", "value": 0.5},
        {"site": "z", "layer": 0, "operation": "set", "value": {"type": "run", "prompt": CORRUPTED}},
    ],
    "top_k": 1,
    "activations": [{"site": "resid_post", "layer": 1}],
}
FEATURES: dict[str, Any] = {"kind": "features", "model": MODEL, "sae": SAE, "prompts": [CLEAN], "top_k": 3}

TOKENS = PromptTokens(ids=(1, 2), strings=("a", " b"), bos_prepended=False)
USAGE = Usage(token_layers=4, engine_seconds=0.1, seconds=0.2)


def provenance(method: str, sae: SaeProvenance | None = None) -> Provenance:
    return Provenance(
        model=MODEL,
        revision="1",
        weights_sha256="0" * 64,
        dtype="float32",
        device="cpu",
        tokenizer_sha256="1" * 64,
        bos="tokenizer",
        sae=sae,
        method=method,
        method_version="1",
        execution="branched",
        versions=Versions(lensd="0", torch="2", transformers="5", transformer_lens="3"),
    )


def patching_result() -> PatchingResult:
    """Two layers by two positions, one value not finite, one pair's own effects kept."""
    dims = ("layer", "position")
    effects = np.array([[1.0, 2.0], [3.0, np.nan]], dtype=np.float32)
    mean, error = InlineTensor.of(effects, dims), InlineTensor.of(effects / 10, dims)
    pair = PatchedPair(
        tokens=PairTokens(clean=TOKENS, corrupted=TOKENS),
        differing_positions=(1,),
        baselines=Baselines(clean=3.0, corrupted=-4.0),
        effects=mean,
    )
    return PatchingResult(
        site=SiteName.RESID_PRE,
        mode="denoising",
        layers=(0, 1),
        positions=(0, 1),
        pairs=(pair,),
        effects=Statistic(mean=mean, standard_error=error, count=2),
        normalized=mean,
        provenance=provenance("activation_patching"),
        usage=USAGE,
    )


def path_patching_result() -> PatchingResult:
    effects = InlineTensor.of([1.0], ("sender",))
    pair = PatchedPair(
        tokens=PairTokens(clean=TOKENS, corrupted=TOKENS),
        differing_positions=(1,),
        baselines=Baselines(clean=3.0, corrupted=-4.0),
    )
    return PatchingResult(
        method="path_patching",
        mode="noising",
        senders=("a0.h0",),
        receivers=("a1.h0<q>", "m1"),
        pairs=(pair,),
        effects=effects,
        normalized=effects,
        provenance=provenance("path_patching"),
        usage=USAGE,
    )


def ablation_result() -> AblationResult:
    effects = InlineTensor.of([[1.0, 2.0]], ("layer", "head"))
    return AblationResult(
        method="resample_ablation",
        site=SiteName.Z,
        layers=(1,),
        heads=(0, 1),
        seed=3,
        examples=(AblatedExample(tokens=TOKENS, baseline=1.0, effects=effects),),
        effects=effects,
        provenance=provenance("resample_ablation"),
        usage=USAGE,
    )


def intervention_result() -> InterventionResult:
    token = PredictedToken(token_id=1, token="a", logit=0.5)
    example = ChangedExample(
        tokens=TOKENS,
        metric=MetricChange(unpatched=1.0, patched=3.0, effect=2.0),
        top=PredictedTokens(unpatched=(token,), patched=(token,)),
        activations=(InlineTensor.of([[1.0, 2.0]], ("position", "d_model")),),
    )
    return InterventionResult(
        examples=(example,),
        effect=ScalarStatistic(mean=2.0, standard_error=None, count=1),
        provenance=provenance("intervention"),
        usage=USAGE,
    )


def attribution_result() -> AttributionResult:
    one = InlineTensor.of(1.0, ())
    layers = InlineTensor.of([1.0, 2.0], ("layer",))
    terms = DirectLogitTerms(
        embedding=one,
        heads=InlineTensor.of(np.ones((2, 3)), ("layer", "head")),
        attention_bias=layers,
        mlps=layers,
        final_norm_bias=one,
        unembedding_bias=one,
    )
    example = AttributedExample(tokens=TOKENS, metric=1.0, sum_of_terms=1.0, gap=0.0)
    outcome = DirectLogitOutcome(examples=(example,), terms=terms)
    return AttributionResult(attribution=outcome, provenance=provenance("direct_logit_attribution"), usage=USAGE)


def features_result() -> FeaturesResult:
    prompt = PromptFeatures(
        tokens=TOKENS,
        per_token=(
            TokenFeatures(position=0, token="a", over_norm=False, features=(ActiveFeature(index=3, activation=1.5),)),
        ),
        top=(PromptFeature(index=3, max_activation=1.5, max_position=0, mean_activation=0.75, active_tokens=1),),
        reconstruction=Reconstruction(tokens=2, mse=0.1, explained_variance=0.9, reference="prompt_mean", mean_l0=1.0),
    )
    token = PromotedToken(token_id=1, token="a", logit=0.5)
    effect = FeatureEffect(index=3, promoted=(token,), suppressed=(token,))
    return FeaturesResult(
        sae=SAE,
        layer=1,
        site="resid_post",
        prompts=(prompt,),
        effects=(effect,),
        provenance=provenance("features", SaeProvenance(id=SAE, sha256="2" * 64)),
        usage=USAGE,
    )
