"""SAELens' own evaluation of an SAE on given tokens: what `sae_evaluation` without the norm filter is held against.

    python -m benchmarks.saelens_evaluation [--threads 2] [--rows 16] [--tokens 64]

The shipped SAEs on rows of this repository's licence, each after BOS: the same tokens and the same model in memory,
`sae_lens.evals` beside a `sae_evaluation` job for each. Writes its section of `benchmarks/GROUND_TRUTH.md`.
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.laboratory import Laboratory
from benchmarks.report import GROUND_TRUTH, circumstances, table, write_section
from services.catalogue.catalogue import sae_folder
from services.contracts.sae_evaluation import SaeEvaluationResult
from services.contracts.tensor import InlineTensor

MODEL = "smollm2-135m"
SAES = ("smollm2-135m-l7-resid-post", "smollm2-135m-l15-resid-post", "smollm2-135m-l23-resid-post")
TEXT = Path(__file__).resolve().parents[1] / "LICENSE"
AGREEMENT = 1e-3
"""How far a figure may be from SAELens', in parts of it: float32 sums over tokens, vocabularies and features."""


@dataclass
class GivenTokens:
    """Stands where SAELens expects its activation store: one batch of rows of equal length."""

    rows: Tensor

    def get_batch_tokens(self, _rows: int) -> Tensor:
        return self.rows


def saelens_figures(
    bridge: Any, folder: Path, tokens: Sequence[Sequence[int]]
) -> tuple[dict[str, float], Sequence[float]]:
    """(SAELens' figures by its names, how often each feature fires) on these rows."""
    from sae_lens import SAE, evals  # noqa: PLC0415 - takes seconds; who only reads the names need not pay
    from sae_lens.training.activation_scaler import ActivationScaler  # noqa: PLC0415

    common: Any = {
        "sae": SAE.load_from_disk(folder),
        "model": bridge,
        "activation_store": GivenTokens(torch.tensor(tokens)),
        "activation_scaler": ActivationScaler(),
        "n_batches": 1,
        "eval_batch_size_prompts": len(tokens),
    }
    with torch.no_grad():
        losses = evals.get_downstream_reconstruction_metrics(**common, compute_kl=True, compute_ce_loss=True)
        figures, by_feature = evals.get_sparsity_and_variance_metrics(
            **common,
            compute_l2_norms=False,
            compute_sparsity_metrics=True,
            compute_variance_metrics=True,
            compute_featurewise_density_statistics=True,
            model_kwargs={},
        )
    return losses | figures, by_feature["feature_density"]


def our_figures(result: SaeEvaluationResult, width: int) -> dict[str, float | None]:
    """The unfiltered figures of a job under SAELens' names; SAELens sums squared errors over `width` dimensions."""
    found = result.without_norm_filter
    assert found is not None
    return {
        "ce_loss_without_sae": result.cross_entropy,
        "ce_loss_with_sae": found.sae.cross_entropy,
        "ce_loss_with_ablation": found.zero_ablation.cross_entropy,
        "ce_loss_score": found.cross_entropy_recovered.against_zero,
        "kl_div_with_sae": found.sae.kl,
        "kl_div_with_ablation": found.zero_ablation.kl,
        "kl_div_score": found.kl_recovered.against_zero,
        "l0": found.l0,
        "mse": None if found.mse is None else found.mse * width,
        "cossim": found.cosine,
        "explained_variance": found.explained_variance_text_mean,
    }


@dataclass(frozen=True)
class Compared:
    """One SAE: by SAELens' name, both sides' figures; the largest difference in how often a feature fires."""

    ours: dict[str, float]
    theirs: dict[str, float]
    density_gap: float
    tokens_over_norm: int

    def difference(self, name: str) -> float:
        """In parts of SAELens' figure."""
        return abs(self.ours[name] - self.theirs[name]) / max(1e-2, abs(self.theirs[name]))


def rows_of_text(laboratory: Laboratory, rows: int, length: int) -> list[list[int]]:
    """Token ids, each row after BOS."""
    read = laboratory.catalogue.tokenizer(MODEL).read_text(TEXT.read_text(encoding="utf-8"), bos=True).ids
    bos, body, step = read[0], read[1:], length - 1
    return [[bos, *body[row * step : (row + 1) * step]] for row in range(rows)]


def compared(laboratory: Laboratory, sae_id: str, tokens: Sequence[Sequence[int]]) -> Compared:
    """Both sides' figures of one SAE; raises where they disagree."""
    prompts = [{"type": "tokens", "tokens": row} for row in tokens]
    result = laboratory.run(
        {"kind": "sae_evaluation", "sae": sae_id, "prompts": prompts, "norm_filter": "off", "densities": True}
    )
    assert isinstance(result, SaeEvaluationResult)
    assert result.without_norm_filter is not None
    own = result.without_norm_filter.densities
    assert isinstance(own, InlineTensor)
    theirs, densities = saelens_figures(laboratory.model.bridge, sae_folder(laboratory.home, sae_id), tokens)
    width = laboratory.catalogue.sae(sae_id).d_model
    ours = {name: value for name, value in our_figures(result, width).items() if value is not None}
    gap = float(np.abs(own.array() - np.array(densities)).max())
    found = Compared(ours, {name: theirs[name] for name in ours}, gap, result.tokens_over_norm)
    for name, value in ours.items():
        if found.difference(name) > AGREEMENT:
            raise RuntimeError(f"{sae_id}: {name} is {value}, SAELens finds {theirs[name]}")
    return found


def section(found: dict[str, Compared], rows: int, length: int) -> str:
    """The table of all SAEs."""
    first, *_ = found.values()
    head = ["SAELens' name"]
    for sae_id in found:
        head += [f"`{sae_id}`", "by SAELens"]
    head.append("largest difference, in parts of the figure")
    lines = []
    for name in first.ours:
        figures = [f"{value:.6g}" for one in found.values() for value in (one.ours[name], one.theirs[name])]
        lines.append((f"`{name}`", *figures, f"{max(one.difference(name) for one in found.values()):.1e}"))
    over = ", ".join(str(one.tokens_over_norm) for one in found.values())
    return (
        f"The shipped SAEs on {rows} × {length} tokens of this repository's licence, BOS first, without the norm "
        f"filter, as SAELens has none: the tokens over each SAE's norm threshold ({over}) are replaced like all "
        f"others, and count in every figure.\n\n{table(tuple(head), lines)}\n\n"
        f"How often each feature fires differs by at most {max(one.density_gap for one in found.values()):.1e}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    given = parser.parse_args()
    before = os.getloadavg()[0]
    laboratory = Laboratory(MODEL, given.threads)
    with laboratory.engine:
        tokens = rows_of_text(laboratory, given.rows, given.tokens)
        found = {sae_id: compared(laboratory, sae_id, tokens) for sae_id in SAES}
    where = circumstances(
        f"python -m benchmarks.saelens_evaluation --threads {given.threads} --rows {given.rows} "
        f"--tokens {given.tokens}",
        given.threads,
        (before, os.getloadavg()[0]),
    )
    write_section(
        "SAE evaluation against SAELens", f"{section(found, given.rows, given.tokens)}\n\n{where}", GROUND_TRUTH
    )


if __name__ == "__main__":
    main()
