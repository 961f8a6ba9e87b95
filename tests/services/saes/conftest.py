"""SAEs for the tests: small random ones of each architecture, and the one that ships."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from services.saes.config import CONFIG_FILE, WEIGHTS_FILE

D_MODEL, D_SAE, K = 12, 40, 5
SHIPPED = Path(__file__).resolve().parents[3] / "assets/saes/smollm2-135m-l15-resid-post"

SaeFolder = Callable[..., Path]


@pytest.fixture
def sae_folder(tmp_path: Path) -> SaeFolder:
    """Writes a small random SAE as SAELens would; keyword arguments replace entries of cfg.json."""

    def write(**overrides: Any) -> Path:
        config: dict[str, Any] = {
            "architecture": "topk",
            "k": K,
            "d_in": D_MODEL,
            "d_sae": D_SAE,
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": True,
            "normalize_activations": "none",
            "reshape_activations": "none",
            "metadata": {"sae_lens_version": "6.54.12", "hook_name": "blocks.1.hook_resid_post", "prepend_bos": True},
        }
        config |= overrides
        generator = torch.Generator().manual_seed(0)
        per_feature = {"jumprelu": ("b_enc", "threshold"), "gated": ("b_gate", "r_mag", "b_mag")}
        shapes: dict[str, tuple[int, ...]] = {
            "W_enc": (D_MODEL, D_SAE),
            "W_dec": (D_SAE, D_MODEL),
            "b_dec": (D_MODEL,),
            **dict.fromkeys(per_feature.get(config["architecture"], ("b_enc",)), (D_SAE,)),
        }
        folder = tmp_path / "sae"
        folder.mkdir()
        (folder / CONFIG_FILE).write_text(json.dumps(config))
        save_file(
            {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}, folder / WEIGHTS_FILE
        )
        return folder

    return write


def change_weights(folder: Path, **tensors: torch.Tensor) -> None:
    """Replaces tensors of the weights file, or adds them."""
    save_file(load_file(folder / WEIGHTS_FILE) | tensors, folder / WEIGHTS_FILE)
