"""SAE evaluation without the norm filter against SAELens' own evaluation, on the same tokens."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from services.contracts.tensor import InlineTensor
from services.engine.engine import Engine
from services.saes.bundle import load_sae, save_sae
from services.saes.sae import Sae
from tests.services.methods.conftest import Laboratory
from tests.services.methods.test_sae_evaluation import Evaluated, sae

__all__ = ["sae"]

TOKENS = [[0, 5, 9, 30, 7, 11], [0, 8, 41, 3, 22, 17], [0, 2, 13, 4, 19, 6]]


@dataclass
class GivenTokens:
    """Stands where SAELens expects its activation store: one batch of rows of equal length."""

    rows: Tensor

    def get_batch_tokens(self, _rows: int) -> Tensor:
        return self.rows


def saelens_figures(bridge: Any, folder: Path, tokens: list[list[int]]) -> tuple[dict[str, float], list[float]]:
    from sae_lens import SAE, evals  # noqa: PLC0415 - takes seconds; only the tests that need it pay
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


@pytest.mark.filterwarnings("ignore")
def test_the_unfiltered_figures_are_saelens_own(
    laboratory: Laboratory, engine: Engine, sae: Sae, tmp_path: Path
) -> None:
    folder = tmp_path / "sae"
    save_sae(sae, folder, model_name="tiny", context=6, dtype=torch.float32)
    prompts = [{"type": "tokens", "tokens": row} for row in TOKENS]
    result = Evaluated(laboratory, engine, load_sae(folder), prompts=prompts, bos=False, densities=True).result
    found = result.without_norm_filter
    assert found is not None
    assert found.mse is not None
    theirs, densities = saelens_figures(laboratory.model("tiny-llama").bridge, folder, TOKENS)
    ours = {
        "ce_loss_without_sae": result.cross_entropy,
        "ce_loss_with_sae": found.sae.cross_entropy,
        "ce_loss_with_ablation": found.zero_ablation.cross_entropy,
        "kl_div_with_sae": found.sae.kl,
        "kl_div_with_ablation": found.zero_ablation.kl,
        "kl_div_score": found.kl_recovered.against_zero,
        "l0": found.l0,
        "mse": found.mse * sae.d_model,
        "cossim": found.cosine,
        "explained_variance": found.explained_variance_text_mean,
    }
    assert ours == pytest.approx({name: theirs[name] for name in ours}, rel=1e-4, abs=1e-5)
    assert isinstance(found.densities, InlineTensor)
    torch.testing.assert_close(torch.tensor(found.densities.array()), torch.tensor(densities), rtol=0, atol=1e-6)
