"""Which features fire on the tokens marked, and not on the others.

1. encode every prompt, tokens over the norm threshold left out, and keep the activations over zero;
2. firing as a guess of which tokens are marked: precision, recall and F1 of every feature that fires on one;
3. of the best by F1: mean activations, and AUROC with zeros counted as ties.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from services.contracts.errors import ErrorCode, JobFailed
from services.contracts.feature_search import FeatureSearch, FoundFeature, Mark, MarkedTokens, marked_positions
from services.contracts.features import FeaturesSpec
from services.methods.context import MethodContext, SaeInUse
from services.methods.feature_encoding import Encoded, encode
from services.methods.feature_site import over_norm
from services.methods.two_samples import rank_test

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Firing:
    """Activations over zero, one an entry: 9 bytes each, so that memory grows with what fires, not with the SAE."""

    features: npt.NDArray[np.int32]
    values: npt.NDArray[np.float32]
    marked: npt.NDArray[np.bool_]


def search_features(
    spec: FeaturesSpec, marks: tuple[Mark, ...], context: MethodContext, in_use: SaeInUse
) -> FeatureSearch:
    """The `top_k` features whose firing tells the marked tokens best from all others."""
    places = marked_positions(marks, context.inputs.prompts)
    pieces: list[_Firing] = []
    kept: list[MarkedTokens] = []
    tokens = 0
    for index, encoded in enumerate(encode(spec, context.inputs.prompts, context, in_use)):
        marked = torch.zeros_like(encoded.counted)
        marked[sorted(places.get(index, ()))] = True
        marked &= encoded.counted
        tokens += int(encoded.counted.sum())
        pieces.append(_fired(encoded, marked))
        if marked.any():
            kept.append(MarkedTokens(prompt=index, positions=tuple(marked.nonzero().flatten().tolist())))
    wanted, found = sum(map(len, places.values())), sum(len(tokens.positions) for tokens in kept)
    if found < wanted:
        context.warnings.append(f"{over_norm(wanted - found, 'marked token')}: left out")
    if not 0 < found < tokens:
        message = "once tokens over the SAE's norm threshold are left out, none is marked, or none is not"
        raise JobFailed(ErrorCode.METHOD_FAILED, message)
    width = in_use.sae.d_sae if spec.features is None else len(spec.features)
    candidates, features = _found(_together(pieces), found, tokens - found, width, spec)
    return FeatureSearch(
        marked=found, others=tokens - found, candidates=candidates, tokens=tuple(kept), features=features
    )


def _fired(encoded: Encoded, marked: torch.Tensor) -> _Firing:
    tokens, features = (encoded.reported > 0).nonzero(as_tuple=True)
    return _Firing(
        features.cpu().numpy().astype(np.int32),
        encoded.reported[tokens, features].float().cpu().numpy(),
        marked[tokens].cpu().numpy(),
    )


def _together(pieces: list[_Firing]) -> _Firing:
    return _Firing(
        np.concatenate([piece.features for piece in pieces]),
        np.concatenate([piece.values for piece in pieces]),
        np.concatenate([piece.marked for piece in pieces]),
    )


def _found(
    firing: _Firing, marked: int, others: int, width: int, spec: FeaturesSpec
) -> tuple[int, tuple[FoundFeature, ...]]:
    """How many features fire on a marked token, and the best of them. F1 first, then AUROC."""
    hits: Counts = np.bincount(firing.features[firing.marked], minlength=width)
    fires: Counts = np.bincount(firing.features, minlength=width)
    f1: Floats = 2 * hits / (fires + marked)
    candidates = int((hits > 0).sum())
    least = np.sort(f1)[-min(spec.top_k, width)]
    tied = np.flatnonzero((hits > 0) & (f1 >= least))
    best = [_measured(firing, int(place), marked, others, spec) for place in tied]
    best.sort(key=lambda feature: (-feature.f1, -feature.auroc, feature.index))
    return candidates, tuple(best[: spec.top_k])


def _measured(firing: _Firing, place: int, marked: int, others: int, spec: FeaturesSpec) -> FoundFeature:
    """One feature; `place` is where it stands among those encoded."""
    mine = firing.features == place
    values, is_marked = firing.values[mine].astype(np.float64), firing.marked[mine]
    on, off = np.zeros(marked), np.zeros(others)
    hits = int(is_marked.sum())
    on[:hits], off[: len(values) - hits] = values[is_marked], values[~is_marked]
    return FoundFeature(
        index=place if spec.features is None else spec.features[place],
        precision=hits / len(values),
        recall=hits / marked,
        f1=2 * hits / (len(values) + marked),
        mean_marked=float(on.mean()),
        mean_other=float(off.mean()),
        auroc=float(rank_test(on[:, None], off[:, None]).auroc[0]),
    )
