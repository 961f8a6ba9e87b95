"""Every figure of an SAE's card, measured on rows of tokens in float32.

1. The model's lower layers give the activations x; tokens over the norm threshold are left out of every reconstruction
   figure and left untouched in every run.
2. The upper layers run four times on from the SAE's layer: with x, with x̂, with zeros, and with the stored mean.
3. Cross-entropies are means over all next-token predictions of the rows, in nats.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from services.saes.fidelity import Fidelity
from services.saes.recipe.activations import Activations
from services.saes.recipe.language_model import SplitModel
from services.saes.sae import Sae

RUNS = ("clean", "sae", "zero_ablation", "mean_ablation")


@dataclass(frozen=True)
class Figures:
    """What was measured. Fractions are of 1; `recovered_*` is (ablated − sae) / (ablated − clean) in cross-entropy.

    `explained_variance` is 1 − Σ‖x − x̂‖² / Σ‖x − mean‖² with the SAE's stored mean; `mse` is per dimension;
    `silent_fraction` counts features that fired on none of these tokens, `dense_fraction` on more than a tenth of them.
    """

    rows: int
    tokens: int
    tokens_over_norm: int
    l0: float
    explained_variance: float
    cosine: float
    mse: float
    cross_entropy_clean: float
    cross_entropy_sae: float
    cross_entropy_zero_ablation: float
    cross_entropy_mean_ablation: float
    recovered_against_zero: float
    recovered_against_mean: float
    silent_fraction: float
    dense_fraction: float


class _Totals:
    """Sums over tokens, in float64."""

    def __init__(self, sae: Sae) -> None:
        self.tokens = 0
        self.predictions = 0
        self.loss = dict.fromkeys(RUNS, 0.0)
        self.fidelity = Fidelity(sae.d_model, sae.d_sae)


def evaluate(sae: Sae, model: SplitModel, tokens: NDArray[np.int32], rows_at_once: int = 8) -> Figures:
    """Measures a float32 SAE on rows of tokens [row, position] that begin with BOS."""
    totals = _Totals(sae)
    with torch.inference_mode():
        for start in range(0, len(tokens), rows_at_once):
            _evaluate_rows(sae, model, torch.from_numpy(tokens[start : start + rows_at_once]).long(), totals)
            if start % (rows_at_once * 10) == 0:
                print(f"evaluation: {start}/{len(tokens)} rows", flush=True)
    return _figures(totals, len(tokens), sae)


def _evaluate_rows(sae: Sae, model: SplitModel, tokens: Int[Tensor, "row position"], totals: _Totals) -> None:
    assert sae.mean_activation is not None
    x = model.activations(tokens)
    kept = sae.within_norm(x.flatten(0, 1)).view(tokens.shape)
    totals.tokens += tokens.numel()
    totals.predictions += tokens[:, 1:].numel()
    replacements = {
        "clean": x[kept],
        "sae": totals.fidelity.add(sae, x[kept]),
        "zero_ablation": torch.zeros(sae.d_model),
        "mean_ablation": sae.mean_activation,
    }
    for run in RUNS:
        spliced = x.clone()
        spliced[kept] = replacements[run]
        logits = model.logits(spliced)[:, :-1].flatten(0, 1)
        totals.loss[run] += float(functional.cross_entropy(logits, tokens[:, 1:].flatten(), reduction="sum"))


def _figures(totals: _Totals, rows: int, sae: Sae) -> Figures:
    clean, spliced, zero, mean = (totals.loss[run] / totals.predictions for run in RUNS)
    fidelity = totals.fidelity
    return Figures(
        rows=rows,
        tokens=totals.tokens,
        tokens_over_norm=totals.tokens - fidelity.tokens,
        l0=_measured(fidelity.l0),
        explained_variance=_measured(fidelity.explained_variance(sae.mean_activation)),
        cosine=_measured(fidelity.cosine),
        mse=_measured(fidelity.mse),
        cross_entropy_clean=clean,
        cross_entropy_sae=spliced,
        cross_entropy_zero_ablation=zero,
        cross_entropy_mean_ablation=mean,
        recovered_against_zero=(zero - spliced) / (zero - clean),
        recovered_against_mean=(mean - spliced) / (mean - clean),
        silent_fraction=_measured(fidelity.dead_fraction),
        dense_fraction=_measured(fidelity.dense_fraction),
    )


def _measured(figure: float | None) -> float:
    if figure is None:
        raise ValueError("no token of these rows is within the SAE's norm threshold: there is nothing to measure")
    return figure


def dead_fraction(sae: Sae, activations: Activations) -> float:
    """The fraction of features that fire on no training token."""
    fired = torch.zeros(sae.d_sae, dtype=torch.bool)
    with torch.inference_mode():
        for indices in _batches(activations.kept, 8192):
            values, features = sae.encode_top(torch.from_numpy(activations.values[indices]).float(), sae.k or sae.d_sae)
            fired[features[values > 0]] = True
    return float((~fired).double().mean())


def _batches(indices: NDArray[np.int64], size: int) -> Iterable[NDArray[np.int64]]:
    return (indices[start : start + size] for start in range(0, len(indices), size))
