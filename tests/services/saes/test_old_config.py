"""`cfg.json` as SAELens wrote it before 6.0, held against SAELens."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from services.saes.bundle import load_sae
from services.saes.config import CONFIG_FILE
from services.saes.errors import InvalidBundle
from tests.services.saes.conftest import D_MODEL, D_SAE, K, SaeFolder, change_weights

OLD = {
    "architecture": "standard",
    "d_in": D_MODEL,
    "d_sae": D_SAE,
    "dtype": "float32",
    "device": "cpu",
    "model_name": "gpt2-small",
    "hook_point": "blocks.1.hook_resid_pre",
    "hook_point_layer": 1,
    "normalize_activations": False,
    "prepend_bos": False,
    "context_size": 128,
}


def _old(folder: Path, **changes: Any) -> Path:
    (folder / CONFIG_FILE).write_text(json.dumps({**OLD, **changes}))
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"apply_b_dec_to_input": False, "normalize_activations": "layer_norm"},
        {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}},
        {"normalize_activations": True},
    ],
)
def test_a_config_of_before_6_0_is_read_as_saelens_reads_it(sae_folder: SaeFolder, changes: dict[str, Any]) -> None:
    from sae_lens import SAE  # noqa: PLC0415 - takes seconds; only the tests that need it pay

    folder = _old(sae_folder(), **changes)
    change_weights(folder, scaling_factor=torch.ones(D_SAE))
    ours, theirs = load_sae(folder), SAE.load_from_disk(folder)
    x = torch.randn(20, D_MODEL, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours.encode(x), theirs.encode(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.reconstruct(x), theirs(x), rtol=1e-5, atol=1e-5)
    assert (ours.hook_name, ours.prepend_bos) == ("blocks.1.hook_resid_pre", theirs.cfg.metadata.prepend_bos)
    assert ours.architecture == theirs.cfg.architecture()
    assert ours.normalize_activations == theirs.cfg.normalize_activations


def test_an_old_config_of_hook_z_is_reshaped_without_saying_so(sae_folder: SaeFolder) -> None:
    folder = _old(sae_folder(), hook_point="blocks.1.attn.hook_z")
    assert load_sae(folder).hook_name == "blocks.1.attn.hook_z"


def test_a_scale_that_nobody_applies_any_more_is_refused(sae_folder: SaeFolder) -> None:
    folder = _old(sae_folder(), finetuning_scaling_factor=True)
    change_weights(folder, scaling_factor=torch.full((D_SAE,), 1.5))
    with pytest.raises(InvalidBundle, match="scaling_factor that is not one"):
        load_sae(folder)
