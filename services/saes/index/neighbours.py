"""What is true of a feature whatever the corpus: the logits it moves and its nearest by decoder; and rankings."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from services.catalogue.feature_file import Ranked
from services.saes.sae import Sae

NEAREST = 10
TOKENS = 10
FEATURES_AT_ONCE = 256

Logits = Callable[[Float[Tensor, "feature d_out"]], Float[Tensor, "feature vocabulary"]]
"""What one unit of each decoder direction adds to the logits."""


def effects(sae: Sae, logits: Logits) -> list[tuple[Ranked, Ranked]]:
    """(promoted, suppressed) of every feature: the TOKENS whose logits its decoder row moves most."""
    found: list[tuple[Ranked, Ranked]] = []
    for start in range(0, sae.d_sae, FEATURES_AT_ONCE):
        moved = logits(sae.W_dec[start : start + FEATURES_AT_ONCE]).float()
        count = min(TOKENS, moved.shape[1])
        promoted, suppressed = moved.topk(count, dim=1), moved.topk(count, dim=1, largest=False)
        found += [
            (
                _ranked(promoted.indices[row], promoted.values[row]),
                _ranked(suppressed.indices[row], suppressed.values[row]),
            )
            for row in range(len(moved))
        ]
    return found


def nearest_by_decoder(sae: Sae) -> list[Ranked]:
    """The NEAREST other features of every feature, by the cosine of their decoder rows."""
    directions = torch.nn.functional.normalize(sae.W_dec.float(), dim=1)
    found = []
    for start in range(0, sae.d_sae, FEATURES_AT_ONCE):
        cosines = directions[start : start + FEATURES_AT_ONCE] @ directions.T
        rows = torch.arange(len(cosines))
        cosines[rows, start + rows] = -torch.inf
        nearest = cosines.topk(min(NEAREST, sae.d_sae - 1), dim=1)
        found += [_ranked(nearest.indices[row], nearest.values[row]) for row in range(len(cosines))]
    return found


def nearest_by_coactivation(jaccard: NDArray[np.float64]) -> Ranked:
    """The NEAREST features that fire together with one, by their Jaccard indices [feature]; those above 0 only."""
    least = np.partition(jaccard, -NEAREST)[-NEAREST] if len(jaccard) > NEAREST else 0.0
    candidates = np.flatnonzero((jaccard >= least) & (jaccard > 0))
    chosen = candidates[np.argsort(-jaccard[candidates], kind="stable")[:NEAREST]]
    return Ranked(chosen.astype(np.uint32), jaccard[chosen].astype(np.float32))


def _ranked(ids: Tensor, values: Tensor) -> Ranked:
    return Ranked(ids.cpu().numpy().astype(np.uint32), values.cpu().numpy().astype(np.float32))
