"""Results of every kind, small, with the tokens, gaps and errors that pictures must bear."""

from typing import Any

import numpy as np
import numpy.typing as npt

from services.contracts.ablation import AblatedExample, AblationResult
from services.contracts.activations import ActivationsResult, PromptActivations, ReadPlace
from services.contracts.attention import AttentionResult, HeadScores, PromptAttention, ReadHead
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
from services.contracts.logit_lens import LensExample, LensLayer, LensToken, LogitLensResult
from services.contracts.patching import PatchedPair, PatchingResult
from services.contracts.result import Baselines, PairTokens, PromptTokens, Provenance, SaeProvenance, Usage, Versions
from services.contracts.sae_evaluation import (
    DensityHistogram,
    Recovered,
    SaeEvaluationResult,
    SaeFidelity,
    SplicedRun,
)
from services.contracts.site import SiteName
from services.contracts.tensor import Estimate, InlineTensor, ScalarStatistic, Statistic

CLEAN = ("When", " John", " and", " Mary", " went", ",", " John", " to")
CORRUPTED = ("When", " John", " and", " Mary", " went", ",", " Mary", " to")
HARD = ("$x_1$", "<b>&", "\n", "\x00", "中文", "🙂", " Привет", "\u202e", "\ud800", "a--b", "", "́e")
"""Tokens that mathtext, XML, a font or a terminal would trip over."""


def tokens(strings: tuple[str, ...] = CLEAN) -> PromptTokens:
    return PromptTokens(ids=tuple(range(len(strings))), strings=strings, bos_prepended=False)


def about(method: str, sae: SaeProvenance | None = None) -> dict[str, Any]:
    """What every result carries beside its numbers."""
    provenance = Provenance(
        model="tiny",
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
    return {"provenance": provenance, "usage": Usage(token_layers=4, engine_seconds=0.1, seconds=0.2)}


def estimate(values: npt.ArrayLike, dims: tuple[str, ...], count: int = 1) -> Estimate:
    """The values of one example, or the mean over `count` with an error of a tenth."""
    mean = InlineTensor.of(values, dims)
    if count == 1:
        return mean
    return Statistic(mean=mean, standard_error=InlineTensor.of(np.abs(mean.array()) / 10, dims), count=count)


def ramp(*shape: int) -> npt.NDArray[np.float32]:
    """Values of both signs, all different, the last one not a number."""
    values = np.linspace(-1, 2, int(np.prod(shape)), dtype=np.float32)
    values[-1] = np.nan
    return values.reshape(shape)


def patching(
    dims: tuple[str, ...],
    values: npt.NDArray[np.float32],
    *,
    count: int = 1,
    prompt: tuple[str, ...] = CLEAN,
    own: bool = False,
    **axes: Any,
) -> PatchingResult:
    """A sweep over `dims`; `axes` label what is not simply counted."""
    sizes = dict(zip(dims, values.shape, strict=True))
    counted = {f"{dim}s": tuple(range(size)) for dim, size in sizes.items()}
    pair = PatchedPair(
        tokens=PairTokens(clean=tokens(prompt), corrupted=tokens(CORRUPTED if prompt is CLEAN else prompt)),
        differing_positions=(6,) if prompt is CLEAN else (),
        baselines=Baselines(clean=3.0, corrupted=-4.0),
        effects=InlineTensor.of(values * 7, dims) if own else None,
    )
    return PatchingResult(
        site=SiteName.Z if "head" in dims else SiteName.RESID_PRE,
        mode="denoising",
        pairs=(pair,) * count,
        effects=estimate(values * 7, dims, count),
        normalized=estimate(values, dims, count),
        **{**counted, **axes},
        **about("activation_patching"),
    )


def features(strings: tuple[str, ...] = CLEAN, *, asked: bool = False, listed: bool = True) -> FeaturesResult:
    per_token = tuple(
        TokenFeatures(
            position=position,
            token=token,
            over_norm=position == 0,
            features=() if position == 0 else (ActiveFeature(index=7 + position % 2, activation=position / 2),),
        )
        for position, token in enumerate(strings)
    )
    top = tuple(
        PromptFeature(index=index, max_activation=3.0, max_position=1, mean_activation=0.5, active_tokens=3)
        for index in (7, 8)
    )
    prompt = PromptFeatures(
        tokens=tokens(strings),
        over_norm=(0,),
        per_token=per_token if listed else (),
        top=top,
        reconstruction=Reconstruction(tokens=7, mse=0.1, explained_variance=0.9, reference="sae_mean", mean_l0=4.0),
        activations=InlineTensor.of(ramp(len(strings), 1), ("token", "feature")) if asked else None,
    )
    promoted = PromotedToken(token_id=1, token=" Paris", logit=1.0)
    return FeaturesResult(
        sae="tiny-sae",
        layer=1,
        site="resid_post",
        features=(42,) if asked else None,
        prompts=(prompt, prompt),
        effects=(FeatureEffect(index=7, promoted=(promoted,), suppressed=()),),
        **about("features", SaeProvenance(id="tiny-sae", sha256="2" * 64)),
    )


def activations(strings: tuple[str, ...] = CLEAN) -> ActivationsResult:
    """Two layers of the residual stream, all heads of z, one head of z at one position, a pattern, scores."""
    length = len(strings)
    masked = np.where(np.tril(np.ones((length, length))) > 0, 0.5, np.nan)
    read: list[tuple[ReadPlace, InlineTensor]] = [
        (_place(SiteName.RESID_POST, 0), InlineTensor.of(ramp(length, 4), ("position", "d_model"))),
        (_place(SiteName.RESID_POST, 1), InlineTensor.of(np.ones((length, 4)) * 99, ("position", "d_model"))),
        (_place(SiteName.Z, 0), InlineTensor.of(np.ones((length, 2, 4)), ("position", "head", "d_head"))),
        (_place(SiteName.Z, 1, 1, (3,)), InlineTensor.of(np.ones((1, 4)), ("position", "d_head"))),
        (_place(SiteName.PATTERN, 1), InlineTensor.of(np.ones((length, 2, length)) / 2, ("query", "head", "key"))),
        (_place(SiteName.ATTN_SCORES, 1, 0), InlineTensor.of(masked, ("query", "key"))),
        (_place(SiteName.EMBED, None), InlineTensor.of(np.zeros((length, 4)), ("position", "d_model"))),
    ]
    prompt = PromptActivations(tokens=tokens(strings), activations=tuple(tensor for _, tensor in read))
    return ActivationsResult(sites=tuple(place for place, _ in read), prompts=(prompt, prompt), **about("activations"))


def _place(
    site: SiteName, layer: int | None, head: int | None = None, positions: tuple[int, ...] | None = None
) -> ReadPlace:
    return ReadPlace(site=site, layer=layer, head=head, positions=positions)


def intervention(
    count: int = 1, *, metric: bool = True, top: tuple[str, ...] = (" Mary", " John")
) -> InterventionResult:
    predicted = tuple(PredictedToken(token_id=index, token=text, logit=9.0 - index) for index, text in enumerate(top))
    example = ChangedExample(
        tokens=tokens(),
        metric=MetricChange(unpatched=3.0, patched=-1.0, effect=-4.0) if metric else None,
        top=PredictedTokens(unpatched=predicted, patched=predicted[:1]) if top else None,
        activations=(),
    )
    effect = ScalarStatistic(mean=-4.0, standard_error=None if count == 1 else 0.5, count=count)
    return InterventionResult(examples=(example,) * count, effect=effect if metric else None, **about("intervention"))


def logit_lens(predicted: tuple[str, ...] = CLEAN, *, metric: bool = True) -> LogitLensResult:
    """Three rows by as many positions as there are predicted tokens, each read off once per row."""
    layers: tuple[LensLayer, ...] = ("embed", 0, 1)
    top = tuple(LensToken(token_id=7, token=text, logit=9.0, probability=0.5) for text in predicted)
    values = InlineTensor.of(ramp(len(layers), len(predicted)), ("layer", "position"))
    example = LensExample(
        tokens=tokens(predicted),
        positions=tuple(range(len(predicted))),
        top=tuple(tuple((token,) for token in top) for _ in layers),
        entropy=values,
        kl=values,
        metric=values if metric else None,
    )
    return LogitLensResult(layers=layers, examples=(example,), **about("logit_lens"))


def ablation(count: int = 1, *, own: bool = False) -> AblationResult:
    values = ramp(3, 4)
    example = AblatedExample(
        tokens=tokens(), baseline=3.0, effects=InlineTensor.of(values, ("layer", "head")) if own else None
    )
    return AblationResult(
        method="mean_ablation",
        site=SiteName.Z,
        layers=(0, 1, 2),
        heads=(0, 1, 2, 3),
        over="position",
        examples=(example,) * count,
        effects=estimate(values, ("layer", "head"), count),
        **about("mean_ablation"),
    )


def attention(strings: tuple[str, ...] = CLEAN, *, patterns: bool = True, scores: bool = True) -> AttentionResult:
    """Two heads' patterns on a prompt, scores of all heads on it; no token comes twice, so one score is null."""
    length = len(strings)
    rows = np.tril(np.ones((2, length, length))) / np.arange(1, length + 1).reshape(-1, 1)
    score = InlineTensor.of(np.abs(ramp(3, 4)) / 2, ("layer", "head"))
    null = InlineTensor.of(np.full((3, 4), np.nan), ("layer", "head"))
    of_all = HeadScores(previous_token=score, duplicate_token=null, induction=score, copying=score)
    prompt = PromptAttention(
        tokens=tokens(strings),
        patterns=InlineTensor.of(rows, ("head", "query", "key")) if patterns else None,
    )
    return AttentionResult(
        heads=(ReadHead(layer=1, head=0), ReadHead(layer=1, head=3)) if patterns else (),
        prompts=(prompt, prompt),
        scores=of_all if scores else None,
        random_scores=of_all if scores else None,
        random_sequences=((1, 2, 1, 2),) if scores else None,
        **about("attention"),
    )


def path_patching(count: int = 1, *, by_position: bool = False) -> PatchingResult:
    """Four heads and an MLP as senders, at all positions at once or at each."""
    senders = ("a0.h0", "a0.h3", "a2.h1", "m1", "input")
    dims = ("sender", "position") if by_position else ("sender",)
    values = ramp(len(senders), len(CLEAN)) if by_position else ramp(len(senders))
    sweep = patching(
        dims, values, count=count, positions=tuple(range(len(CLEAN))) if by_position else None, senders=senders
    )
    receivers = tuple(f"a9.h{head}<q>" for head in range(8))
    return sweep.model_copy(update={"method": "path_patching", "site": None, "receivers": receivers})


def sae_evaluation(*, filtered: bool = True) -> SaeEvaluationResult:
    fidelity = SaeFidelity(
        tokens=30,
        l0=32.0,
        mse=0.5,
        cosine=0.9,
        explained_variance=0.8,
        explained_variance_text_mean=0.75,
        dead_fraction=0.4,
        dense_fraction=0.01,
        density_histogram=DensityHistogram(edges=(-2.0, -1.0, 0.0), counts=(40, 2)),
        sae=SplicedRun(cross_entropy=4.0, kl=0.3),
        zero_ablation=SplicedRun(cross_entropy=15.0, kl=9.0),
        mean_ablation=SplicedRun(cross_entropy=10.0, kl=5.0),
        cross_entropy_recovered=Recovered(against_zero=0.97, against_mean=0.94),
        kl_recovered=Recovered(against_zero=0.96, against_mean=None),
    )
    return SaeEvaluationResult(
        sae="tiny-sae",
        layer=1,
        site=SiteName.RESID_POST,
        mean="sae_mean",
        prompts=2,
        tokens=32,
        tokens_over_norm=2,
        predictions=30,
        cross_entropy=3.5,
        with_norm_filter=fidelity if filtered else None,
        without_norm_filter=fidelity,
        **about("sae_evaluation", SaeProvenance(id="tiny-sae", sha256="2" * 64)),
    )
