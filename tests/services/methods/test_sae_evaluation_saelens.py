"""SAE evaluation without the norm filter against SAELens' own evaluation, on the same tokens, for all its SAEs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.saelens_evaluation import our_figures, saelens_figures
from services.contracts.tensor import InlineTensor
from services.engine.engine import Engine
from services.saes.bundle import load_sae, save_sae
from services.saes.sae import Gated, JumpRelu, Relu, Sae
from tests.services.methods.conftest import Laboratory
from tests.services.methods.test_sae_evaluation import FEATURES, Evaluated, sae

__all__ = ["sae"]

TOKENS = [[0, 5, 9, 30, 7, 11], [0, 8, 41, 3, 22, 17], [0, 2, 13, 4, 19, 6]]


def _drawn(count: int = FEATURES) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(7))


CHANGES: dict[str, dict[str, Any]] = {
    "topk": {},
    "standard": {"activation": Relu(), "apply_b_dec_to_input": False},
    "jumprelu": {"activation": JumpRelu(_drawn().abs() * 12)},
    "gated": {"activation": Gated(_drawn(), _drawn().flip(0) / 4, _drawn().roll(1))},
    "topk, constant_norm_rescale": {"normalize_activations": "constant_norm_rescale"},
    "jumprelu, layer_norm": {"activation": JumpRelu(_drawn().abs() * 12), "normalize_activations": "layer_norm"},
}
"""What makes another of the random TopK SAE."""

BY_BATCH: dict[str, dict[str, Any]] = {"batchtopk": {}, "matryoshka_batchtopk": {"matryoshka_widths": [16, FEATURES]}}
"""What SAELens saves as JumpReLU once they are trained, with what their training asks for beside k."""


def _saved(sae: Sae, folder: Path) -> None:
    save_sae(sae, folder, model_name="tiny", context=6, dtype=torch.float32)


def _saved_by_saelens(architecture: str, like: Sae, folder: Path) -> None:
    """As training would leave it, with these weights, and decoder rows of unequal norms that saving folds away."""
    from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY  # noqa: PLC0415 - takes seconds
    from sae_lens.saes.sae import SAEMetadata  # noqa: PLC0415

    sae_class, config_class = SAE_TRAINING_CLASS_REGISTRY[architecture]
    metadata = SAEMetadata(hook_name=like.hook_name, prepend_bos=True)
    fields = {"k": 4, "rescale_acts_by_decoder_norm": True, "metadata": metadata, **BY_BATCH[architecture]}
    made: Any = sae_class(config_class(d_in=like.d_model, d_sae=like.d_sae, **fields))
    with torch.no_grad():
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            getattr(made, name).copy_(getattr(like, name))
        made.topk_threshold.fill_(10.0)
    made.save_inference_model(folder)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("made", [*CHANGES, *BY_BATCH])
def test_the_unfiltered_figures_are_saelens_own(
    laboratory: Laboratory, engine: Engine, sae: Sae, made: str, tmp_path: Path
) -> None:
    folder = tmp_path / "sae"
    if made in BY_BATCH:
        _saved_by_saelens(made, sae, folder)
    else:
        _saved(replace(sae, **CHANGES[made]), folder)
    loaded = load_sae(folder)
    prompts = [{"type": "tokens", "tokens": row} for row in TOKENS]
    result = Evaluated(laboratory, engine, loaded, prompts=prompts, bos=False, densities=True).result
    found = result.without_norm_filter
    assert found is not None
    assert found.l0 is not None
    assert 2 < found.l0 < 36, "features that fire here and not there"
    theirs, densities = saelens_figures(laboratory.model("tiny-llama").bridge, folder, TOKENS)
    ours = our_figures(result, loaded.d_model)
    assert ours == pytest.approx({name: theirs[name] for name in ours}, rel=1e-4, abs=1e-5)
    assert isinstance(found.densities, InlineTensor)
    torch.testing.assert_close(torch.tensor(found.densities.array()), torch.tensor(densities), rtol=0, atol=1e-6)
