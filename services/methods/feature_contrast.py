"""Which features tell two sets of prompts apart.

1. per prompt and feature one score: its largest or mean activation over the tokens within the norm threshold;
2. leave out features that fire in neither set;
3. per feature Hedges' g, AUROC and the p-value of a Mann-Whitney U test; q-values over all features tested;
4. report the features of the smallest p-values, of equal ones the largest |g|.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from services.contracts.errors import ErrorCode, JobFailed
from services.contracts.feature_contrast import Contrast, ContrastedFeature, FeatureContrast
from services.contracts.features import FeaturesSpec
from services.contracts.result import PromptTokens
from services.methods.context import MethodContext, SaeInUse
from services.methods.feature_encoding import encode
from services.methods.two_samples import Sample, false_discovery_rates, hedges_g, rank_test

FEW_PROMPTS = 8
"""Below this many prompts in a set, the normal approximation of a p-value is rough."""

Scores = npt.NDArray[np.float32]


def contrast_features(
    spec: FeaturesSpec, contrast: Contrast, context: MethodContext, in_use: SaeInUse
) -> FeatureContrast:
    """The `top_k` features that differ most surely between the job's prompts and the baseline."""
    every_first = _scores(spec, contrast, context.inputs.prompts, context, in_use)
    every_second = _scores(spec, contrast, context.inputs.references, context, in_use)
    tested = np.flatnonzero((every_first > 0).any(axis=0) | (every_second > 0).any(axis=0))
    first, second = every_first[:, tested].astype(np.float64), every_second[:, tested].astype(np.float64)
    if min(len(first), len(second)) < FEW_PROMPTS:
        context.warnings.append(
            f"a set has fewer than {FEW_PROMPTS} prompts: its p-values' normal approximation is rough"
        )
    chosen = tested if spec.features is None else np.array(spec.features)[tested]
    return FeatureContrast(
        score=contrast.score,
        prompts=len(first),
        baseline_prompts=len(second),
        tested=len(tested),
        features=_ranked(chosen, first, second, spec.top_k),
    )


def _scores(
    spec: FeaturesSpec,
    contrast: Contrast,
    prompts: Sequence[PromptTokens],
    context: MethodContext,
    in_use: SaeInUse,
) -> Scores:
    """[prompt, feature], of the prompts that have a token within the norm threshold."""
    rows: list[Scores] = []
    for encoded in encode(spec, prompts, context, in_use):
        within = encoded.reported[encoded.counted]
        if len(within):
            score = within.amax(dim=0) if contrast.score == "max" else within.mean(dim=0)
            rows.append(score.float().cpu().numpy())
    if left_out := len(prompts) - len(rows):
        counted = f"{left_out} of {len(prompts)}"
        context.warnings.append(f"prompts left out, without a token within the SAE's norm threshold: {counted}")
    if not rows:
        message = "every token of a set is over the SAE's norm threshold: it has no features to contrast"
        raise JobFailed(ErrorCode.METHOD_FAILED, message)
    return np.stack(rows)


def _ranked(indices: npt.NDArray[np.int64], first: Sample, second: Sample, top_k: int) -> tuple[ContrastedFeature, ...]:
    effects, ranks = hedges_g(first, second), rank_test(first, second)
    q_values = false_discovery_rates(ranks.p_value)
    order = np.lexsort((-np.nan_to_num(np.abs(effects), nan=np.inf), ranks.p_value))
    return tuple(
        ContrastedFeature(
            index=int(indices[place]),
            mean=float(first[:, place].mean()),
            baseline_mean=float(second[:, place].mean()),
            firing=float((first[:, place] > 0).mean()),
            baseline_firing=float((second[:, place] > 0).mean()),
            hedges_g=float(effects[place]) if np.isfinite(effects[place]) else None,
            auroc=float(ranks.auroc[place]),
            p_value=float(ranks.p_value[place]),
            q_value=float(q_values[place]),
        )
        for place in order[:top_k].tolist()
    )
