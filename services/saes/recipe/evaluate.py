"""Every figure of an SAE's card, measured on rows of tokens in float32.

1. The model's lower layers give the activations x; tokens over the norm threshold are left out of every reconstruction
   figure and left untouched in every run.
2. The upper layers run four times on from the SAE's layer: with x, with x̂, with zeros, and with the stored mean.
3. Cross-entropies are means over all next-token predictions of the rows, in nats.

With a file for a checkpoint, a measurement that was cut short goes on where it stopped, to the same figures.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from services.saes.fidelity import Fidelity
from services.saes.progress import how_far
from services.saes.recipe.activations import Activations
from services.saes.recipe.checkpoint import keep, kept
from services.saes.recipe.language_model import SplitModel
from services.saes.sae import Sae

RUNS = ("clean", "sae", "zero_ablation", "mean_ablation")

BATCHES_A_CHECKPOINT = 10


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
    """Sums over the first `rows` rows, in float64."""

    def __init__(self, sae: Sae) -> None:
        self.rows = 0
        self.loss = dict.fromkeys(RUNS, 0.0)
        self.fidelity = Fidelity(sae.d_model, sae.d_sae)

    def state(self) -> dict[str, Tensor]:
        loss = torch.tensor([self.loss[run] for run in RUNS], dtype=torch.float64)
        return {"rows": torch.tensor(self.rows), "loss": loss, **self.fidelity.state()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.rows = int(state["rows"])
        self.loss = dict(zip(RUNS, state["loss"].tolist(), strict=True))
        self.fidelity.restore(state)


def evaluate(
    sae: Sae, model: SplitModel, tokens: NDArray[np.int32], rows_at_once: int = 8, checkpoint: Path | None = None
) -> Figures:
    """Measures a float32 SAE on rows of tokens [row, position] that begin with BOS; `checkpoint` is of these alone."""
    totals = _Totals(sae)
    if (state := kept(checkpoint)) is not None:
        totals.restore(state)
    started, first = time.monotonic(), totals.rows
    with torch.inference_mode():
        for start in range(first, len(tokens), rows_at_once):
            batch = torch.from_numpy(tokens[start : start + rows_at_once]).long()
            _evaluate_rows(sae, model, batch, totals)
            totals.rows += len(batch)
            if totals.rows % (rows_at_once * BATCHES_A_CHECKPOINT) == 0 or totals.rows == len(tokens):
                if checkpoint is not None:
                    keep(checkpoint, totals.state())
                far = how_far(totals.rows, len(tokens), first=first, seconds=time.monotonic() - started)
                print(f"evaluation: {totals.rows}/{len(tokens)} rows, {far}", flush=True)
    return _figures(totals, tokens, sae)


def _evaluate_rows(sae: Sae, model: SplitModel, tokens: Int[Tensor, "row position"], totals: _Totals) -> None:
    assert sae.mean_activation is not None
    x = model.activations(tokens)
    kept = sae.within_norm(x.flatten(0, 1)).view(tokens.shape)
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


def _figures(totals: _Totals, tokens: NDArray[np.int32], sae: Sae) -> Figures:
    clean, spliced, zero, mean = (totals.loss[run] / tokens[:, 1:].size for run in RUNS)
    fidelity = totals.fidelity
    return Figures(
        rows=len(tokens),
        tokens=tokens.size,
        tokens_over_norm=tokens.size - fidelity.tokens,
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


def dead_fraction(
    sae: Sae, activations: Activations, tokens_at_once: int = 8_192, checkpoint: Path | None = None
) -> float:
    """The fraction of features that fire on no training token; `checkpoint` is of these alone."""
    kept_tokens = activations.kept
    state = kept(checkpoint) or {"fired": torch.zeros(sae.d_sae, dtype=torch.bool), "tokens": torch.tensor(0)}
    fired, done = state["fired"], int(state["tokens"])
    started, first = time.monotonic(), done
    with torch.inference_mode():
        for start in range(first, len(kept_tokens), tokens_at_once):
            indices = kept_tokens[start : start + tokens_at_once]
            values, features = sae.encode_top(torch.from_numpy(activations.values[indices]).float(), sae.k or sae.d_sae)
            fired[features[values > 0]] = True
            done += len(indices)
            if done % (tokens_at_once * BATCHES_A_CHECKPOINT) == 0 or done == len(kept_tokens):
                if checkpoint is not None:
                    keep(checkpoint, {"fired": fired, "tokens": torch.tensor(done)})
                far = how_far(done, len(kept_tokens), first=first, seconds=time.monotonic() - started)
                print(f"dead features: {done}/{len(kept_tokens)} tokens, {far}", flush=True)
    return float((~fired).double().mean())
