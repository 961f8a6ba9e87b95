"""The trainer, on activations whose dictionary is known."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from services.saes.recipe.activations import Activations
from services.saes.recipe.settings import Recipe
from services.saes.recipe.train import train

D_MODEL, PLANTED, FIRING = 24, 32, 3
LAYER = 2
RECIPE = Recipe(
    d_sae=PLANTED,
    k=FIRING,
    epochs=12,
    batch_size=128,
    learning_rate=4e-3,
    warmup_steps=20,
    checkpoint_every=50,
    dead_window=20,
)


@pytest.fixture(scope="module")
def dictionary() -> torch.Tensor:
    return functional.normalize(torch.randn(PLANTED, D_MODEL, generator=torch.Generator().manual_seed(3)), dim=-1)


@pytest.fixture(scope="module")
def activations(dictionary: torch.Tensor) -> Activations:
    """20,000 tokens, each a mean plus three planted features of strength 20 to 40."""
    generator = torch.Generator().manual_seed(4)
    chosen = torch.rand(20_000, PLANTED, generator=generator).topk(FIRING).indices
    strength = torch.zeros(20_000, PLANTED).scatter(
        -1, chosen, 20 + 20 * torch.rand(20_000, FIRING, generator=generator)
    )
    x = (strength @ dictionary + 50.0).numpy()
    kept = np.arange(0, 20_000, dtype=np.int64)
    return Activations(x.astype(np.float16), kept, norm_threshold=1e3, median_norm=250.0, mean=x.mean(0))


class Interrupted(Exception):
    """Stands for whatever ends a process."""


class Failing:
    """Activations that can be read only so many times."""

    def __init__(self, values: NDArray[np.float16], reads: int) -> None:
        self._values, self._reads = values, reads

    def __getitem__(self, index: Any) -> NDArray[np.float16]:
        self._reads -= 1
        if self._reads < 0:
            raise Interrupted
        read: NDArray[np.float16] = self._values[index]
        return read


def test_the_planted_dictionary_is_recovered_on_raw_activations(
    activations: Activations, dictionary: torch.Tensor, tmp_path: Path
) -> None:
    sae = train(RECIPE, LAYER, activations, tmp_path)
    x = torch.from_numpy(activations.values[:2000]).float()
    features = sae.encode(x)
    error = (x - sae.decode(features)).square().sum() / (x - x.mean(0)).square().sum()
    assert 1 - float(error) > 0.9
    assert torch.allclose(sae.W_dec.norm(dim=-1), torch.ones(PLANTED), atol=1e-5)
    best_match = (functional.normalize(sae.W_dec, dim=-1) @ dictionary.T).max(dim=0).values
    assert float((best_match > 0.95).float().mean()) > 0.8
    assert float((features > 0).any(dim=0).float().mean()) > 0.9


def test_an_interrupted_training_goes_on_to_the_same_weights(activations: Activations, tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=2)
    whole = train(recipe, LAYER, activations, _folder(tmp_path, "whole"))
    cut = _folder(tmp_path, "cut")
    failing: Any = Failing(activations.values, reads=200)
    with pytest.raises(Interrupted):
        train(recipe, LAYER, replace(activations, values=failing), cut)
    resumed = train(recipe, LAYER, activations, cut)
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        torch.testing.assert_close(getattr(resumed, name), getattr(whole, name), rtol=0, atol=0)


def _folder(root: Path, name: str) -> Path:
    (root / name).mkdir()
    return root / name
