"""SAE evaluation without the norm filter against SAELens' own evaluation, on the same tokens."""

from pathlib import Path

import pytest
import torch

from benchmarks.saelens_evaluation import our_figures, saelens_figures
from services.contracts.tensor import InlineTensor
from services.engine.engine import Engine
from services.saes.bundle import load_sae, save_sae
from services.saes.sae import Sae
from tests.services.methods.conftest import Laboratory
from tests.services.methods.test_sae_evaluation import Evaluated, sae

__all__ = ["sae"]

TOKENS = [[0, 5, 9, 30, 7, 11], [0, 8, 41, 3, 22, 17], [0, 2, 13, 4, 19, 6]]


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
    theirs, densities = saelens_figures(laboratory.model("tiny-llama").bridge, folder, TOKENS)
    ours = our_figures(result, sae.d_model)
    assert ours == pytest.approx({name: theirs[name] for name in ours}, rel=1e-4, abs=1e-5)
    assert isinstance(found.densities, InlineTensor)
    torch.testing.assert_close(torch.tensor(found.densities.array()), torch.tensor(densities), rtol=0, atol=1e-6)
