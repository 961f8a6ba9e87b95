"""A contrast of two sets of prompts and a search by marked tokens, small."""

from services.contracts.feature_contrast import ContrastedFeature, FeatureContrast
from services.contracts.feature_search import FeatureSearch, FoundFeature, MarkedTokens
from services.contracts.features import FeaturesResult
from tests.services.figures import samples


def contrast() -> FeaturesResult:
    """Of three features the second is higher on the baseline, and the third has no deviation."""
    features = tuple(
        ContrastedFeature(
            index=index,
            mean=2.0,
            baseline_mean=mean,
            firing=1.0,
            baseline_firing=0.5,
            hedges_g=effect,
            auroc=auroc,
            p_value=0.01,
            q_value=0.02 if auroc > 0.5 else 0.2,
        )
        for index, mean, effect, auroc in ((7, 0.5, 1.5, 0.9), (8, 3.0, -0.7, 0.2), (9, 2.0, None, 0.5))
    )
    found = FeatureContrast(score="max", prompts=12, baseline_prompts=11, tested=30, features=features)
    return samples.features().model_copy(update={"prompts": (), "contrast": found})


def search() -> FeaturesResult:
    features = tuple(
        FoundFeature(index=index, precision=f1, recall=f1, f1=f1, mean_marked=3.0, mean_other=0.1, auroc=0.9)
        for index, f1 in ((7, 1.0), (8, 0.4))
    )
    marked = (MarkedTokens(prompt=0, positions=(1, 6)),)
    found = FeatureSearch(marked=2, others=6, candidates=5, tokens=marked, features=features)
    return samples.features().model_copy(update={"prompts": (), "search": found})
