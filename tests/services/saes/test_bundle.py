"""What the loader reads, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from services.contracts.errors import ErrorCode
from services.saes.bundle import load_sae, save_sae
from services.saes.config import CONFIG_FILE, EXTRAS_FILE, WEIGHTS_FILE, sha256_of
from services.saes.errors import InvalidBundle, SaeMismatch
from services.saes.sae import Sae
from tests.services.saes.conftest import D_MODEL, D_SAE, K, SaeFolder, change_weights

BOTH_ENDS = {"hook_name": "blocks.1.hook_resid_mid", "hook_name_out": "blocks.1.hook_mlp_out"}
OF_Z = {"hook_name": "blocks.1.attn.hook_z", "hook_name_out": "blocks.1.hook_mlp_out"}
TRANSCODER: dict[str, Any] = {
    "architecture": "transcoder",
    "d_out": 8,
    "apply_b_dec_to_input": False,
    "metadata": BOTH_ENDS,
}


def test_conventions_are_read_from_the_config(sae_folder: SaeFolder) -> None:
    sae = load_sae(sae_folder())
    assert (sae.d_model, sae.d_sae, sae.k, sae.architecture) == (D_MODEL, D_SAE, K, "topk")
    assert (sae.hook_name, sae.layer, sae.prepend_bos) == ("blocks.1.hook_resid_post", 1, True)
    assert sae.norm_threshold is None
    assert sae.mean_activation is None


def test_saving_and_loading_keeps_everything(sae_folder: SaeFolder, tmp_path: Path) -> None:
    made = load_sae(sae_folder(metadata={"hook_name": "blocks.3.hook_resid_post", "prepend_bos": False}))
    sae = Sae(**{**made.__dict__, "norm_threshold": 7.5, "mean_activation": torch.arange(12.0), "model_id": "tiny"})
    save_sae(sae, tmp_path / "saved", model_name="tiny", context=16, dtype=torch.float32)
    loaded = load_sae(tmp_path / "saved")
    for name in ("W_enc", "b_enc", "W_dec", "b_dec", "mean_activation"):
        assert torch.equal(getattr(loaded, name), getattr(sae, name)), name
    assert (loaded.norm_threshold, loaded.model_id, loaded.prepend_bos, loaded.k) == (7.5, "tiny", False, K)
    assert loaded.sha256 == sha256_of(tmp_path / "saved" / WEIGHTS_FILE)


@pytest.mark.parametrize("architecture", ["topk", "standard", "jumprelu", "gated"])
def test_saving_and_loading_encodes_the_same(sae_folder: SaeFolder, tmp_path: Path, architecture: str) -> None:
    made = load_sae(sae_folder(architecture=architecture))
    save_sae(made, tmp_path / "saved", model_name="tiny", context=16, dtype=torch.float32)
    x = torch.randn(20, D_MODEL, generator=torch.Generator().manual_seed(1))
    assert torch.equal(load_sae(tmp_path / "saved").encode(x), made.encode(x))


def test_a_damaged_file_is_an_unavailable_sae(sae_folder: SaeFolder) -> None:
    folder = sae_folder()
    change_weights(folder, b_dec=torch.full((D_MODEL,), float("nan")))
    with pytest.raises(InvalidBundle) as refused:
        load_sae(folder)
    assert refused.value.code == ErrorCode.SAE_UNAVAILABLE


def test_the_weights_sha256_is_verified(sae_folder: SaeFolder) -> None:
    folder = sae_folder()
    expected = sha256_of(folder / WEIGHTS_FILE)
    assert load_sae(folder, expected_sha256=expected).sha256 == expected
    content = bytearray((folder / WEIGHTS_FILE).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS_FILE).write_bytes(content)
    with pytest.raises(InvalidBundle, match="has sha256"):
        load_sae(folder, expected_sha256=expected)


def test_the_configs_sha256_is_verified_before_it_is_made_use_of(sae_folder: SaeFolder) -> None:
    folder = sae_folder()
    expected = sha256_of(folder / CONFIG_FILE)
    assert load_sae(folder, expected_config_sha256=expected).config_sha256 == expected
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(config | {"k": K - 1}))
    with pytest.raises(InvalidBundle, match=r"cfg.json has sha256 \w{64}, expected"):
        load_sae(folder, expected_config_sha256=expected)
    assert load_sae(folder).k == K - 1, "a sound config but for its sha256"
    (folder / CONFIG_FILE).write_text("{")
    with pytest.raises(InvalidBundle, match=r"cfg.json has sha256 \w{64}, expected"):
        load_sae(folder, expected_config_sha256=expected)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_truncated_weights_file_is_refused(sae_folder: SaeFolder, kept: int) -> None:
    folder = sae_folder()
    (folder / WEIGHTS_FILE).write_bytes((folder / WEIGHTS_FILE).read_bytes()[:kept])
    with pytest.raises(InvalidBundle, match="truncated"):
        load_sae(folder)


def test_trailing_bytes_are_refused(sae_folder: SaeFolder) -> None:
    folder = sae_folder()
    with (folder / WEIGHTS_FILE).open("ab") as file:
        file.write(b"\0" * 16)
    with pytest.raises(InvalidBundle, match="padded"):
        load_sae(folder)


@pytest.mark.parametrize(
    "header",
    [
        b"not json",
        b"[]",
        b'{"W_enc": {"dtype": "F32"}}',
        b'{"W_enc": {"dtype": "F32", "shape": "x", "data_offsets": [0, 1]}}',
        b'{"W_enc": {"dtype": "F32", "shape": [Infinity], "data_offsets": [0, 1]}}',
        b'{"W_enc": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 1]}}',
        b'{"W_enc": {"dtype": "F32", "shape": [1], "data_offsets": [0, NaN]}}',
        b'{"W_enc": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}',
        b'{"W_enc": {"dtype": "\\ud800", "shape": [1], "data_offsets": [0, 4]}}',
        pytest.param(b'{"W_enc": {"shape": [1' + b"0" * 5_000 + b"]}}", id="a number of 5,001 digits"),
        pytest.param(b'{"W_enc": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", id="100,000 lists deep"),
        pytest.param(b'{"W_enc": ' + b'{"shape":' * 900 + b"1" + b"}" * 901, id="900 objects deep"),
    ],
)
def test_a_damaged_header_is_refused(sae_folder: SaeFolder, header: bytes) -> None:
    folder = sae_folder()
    (folder / WEIGHTS_FILE).write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(InvalidBundle, match="no valid safetensors header") as refused:
        load_sae(folder)
    assert len(refused.value.message) < 300


def test_a_header_that_announces_a_huge_tensor_is_refused_before_allocation(sae_folder: SaeFolder) -> None:
    folder = sae_folder()
    shape = [D_MODEL, 1 << 40]
    header = json.dumps({"W_enc": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * D_MODEL << 40]}}).encode()
    (folder / WEIGHTS_FILE).write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(InvalidBundle, match="holds the tensors"):
        load_sae(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(sae_folder: SaeFolder, value: float) -> None:
    folder = sae_folder()
    change_weights(folder, b_enc=torch.full((D_SAE,), value))
    with pytest.raises(InvalidBundle, match="b_enc holds NaN or infinite"):
        load_sae(folder)


def test_a_shape_that_contradicts_the_config_is_refused(sae_folder: SaeFolder) -> None:
    folder = sae_folder()
    change_weights(folder, W_dec=torch.zeros(D_SAE, D_MODEL + 1))
    with pytest.raises(InvalidBundle, match=r"W_dec has shape \[40, 13\], cfg.json says \[40, 12\]"):
        load_sae(folder)


def test_integer_weights_are_refused(sae_folder: SaeFolder) -> None:
    folder = sae_folder()
    change_weights(folder, b_dec=torch.zeros(D_MODEL, dtype=torch.int32))
    with pytest.raises(InvalidBundle, match="b_dec has dtype I32"):
        load_sae(folder)


def test_unexpected_tensors_are_refused(sae_folder: SaeFolder) -> None:
    folder = sae_folder()
    change_weights(folder, threshold=torch.zeros(D_SAE))
    with pytest.raises(InvalidBundle, match="threshold"):
        load_sae(folder)


def test_a_mean_activation_of_the_wrong_width_is_refused(sae_folder: SaeFolder) -> None:
    folder = sae_folder()
    save_file({"mean_activation": torch.zeros(D_MODEL + 1)}, folder / EXTRAS_FILE)
    with pytest.raises(InvalidBundle, match="mean_activation"):
        load_sae(folder)


def test_an_sae_for_another_width_than_the_models_is_refused(sae_folder: SaeFolder) -> None:
    with pytest.raises(SaeMismatch, match="reads 12 dimensions, the model has 576"):
        load_sae(sae_folder(), d_model=576)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"architecture": "temporal"}, "tokens before"),
        ({"architecture": "matching_pursuit"}, "one after another"),
        ({"architecture": "abstopk"}, "may be negative"),
        ({"architecture": "transcoder"}, "needs d_out"),
        ({"architecture": "transcoder", "d_out": 8}, "needs metadata.hook_name_out"),
        ({"architecture": "skip_transcoder", "d_out": 8, "metadata": BOTH_ENDS}, "apply_b_dec_to_input is true"),
        ({**TRANSCODER, "d_out": 9}, r"W_dec has shape \[40, 12\], cfg.json says \[40, 9\]"),
        ({**TRANSCODER, "architecture": "skip_transcoder", "d_out": 12}, "holds the tensors"),
        ({**TRANSCODER, "d_out": 0}, "d_out"),
        ({**TRANSCODER, "metadata": BOTH_ENDS | {"hook_name_out": "lm_head"}}, "hook_name_out"),
        ({**TRANSCODER, "reshape_activations": "hook_z", "metadata": OF_Z}, "a transcoder of hook_z"),
        ({"architecture": "unheard_of"}, "architecture"),
        ({"normalize_activations": "covariance_whitening"}, "fold_activation_whitening"),
        ({"normalize_activations": "other"}, "normalize_activations"),
        ({"reshape_activations": "hook_z"}, "hook_z goes with an SAE of attn.hook_z, and no other"),
        ({"metadata": OF_Z}, "hook_z goes with an SAE of attn.hook_z, and no other"),
        ({"reshape_activations": "other"}, "reshape_activations"),
        ({"metadata": OF_Z | {"hook_head_index": 3}}, "hook_head_index is 3: it reads one head"),
        (
            {"metadata": BOTH_ENDS | {"model_from_pretrained_kwargs": {"center_writing_weights": True}}},
            "loaded with center_writing_weights, whose activations are others",
        ),
        ({"d_in": -1}, "d_in"),
        ({"d_sae": 1 << 40}, "d_sae"),
        ({"k": None}, "needs k"),
        ({"k": D_SAE + 1}, "needs k"),
        ({"metadata": {"hook_name": "../../etc"}}, "hook_name"),
        ({"metadata": {}}, "hook_name"),
        ({"metadata": {"hook_name": "blocks.1.hook_resid_post", "lensd": {"norm_threshold": -1}}}, "norm_threshold"),
    ],
)
def test_a_config_that_cannot_be_used_is_refused_by_name(
    sae_folder: SaeFolder, overrides: dict[str, Any], named: str
) -> None:
    with pytest.raises(InvalidBundle, match=named):
        load_sae(sae_folder(**overrides))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b'"text"',
        pytest.param(b"[" * 100_000, id="100,000 lists deep"),
        pytest.param(b'{"metadata": ' + b"[" * 400 + b"]" * 400 + b"}", id="400 lists deep"),
        pytest.param(b'{"architecture": ' + b'{"a":' * 900 + b"1" + b"}" * 901, id="900 objects deep"),
        pytest.param(b'{"k": 1' + b"0" * 5_000 + b"}", id="a number of 5,001 digits"),
        b'{"d_in": Infinity}',
        b'{"architecture": ["topk"]}',
        b'{"metadata": {"hook_head_index": "\\ud800"}}',
    ],
)
def test_a_damaged_config_is_refused_in_one_line(sae_folder: SaeFolder, content: bytes) -> None:
    folder = sae_folder()
    (folder / CONFIG_FILE).write_bytes(content)
    with pytest.raises(InvalidBundle, match=r"sae/cfg.json: ") as refused:
        load_sae(folder)
    assert len(refused.value.message) < 300
    assert "\n" not in refused.value.message


def test_a_huge_config_is_refused_unread(sae_folder: SaeFolder) -> None:
    folder = sae_folder()
    with (folder / CONFIG_FILE).open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(InvalidBundle, match="has over 1000000 bytes"):
        load_sae(folder)


@pytest.mark.parametrize("name", ["params.npz", "ae.pt"])
def test_weights_that_are_not_safetensors_are_refused_unopened(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"never read")
    with pytest.raises(InvalidBundle, match=f"{name}: lensd reads safetensors only"):
        load_sae(tmp_path)


@pytest.mark.parametrize("normalization", ["expected_average_only_in", "constant_norm_rescale", "layer_norm"])
def test_saving_and_loading_keeps_the_normalization(sae_folder: SaeFolder, tmp_path: Path, normalization: str) -> None:
    made = load_sae(sae_folder(normalize_activations=normalization))
    save_sae(made, tmp_path / "saved", model_name="tiny", context=16, dtype=torch.float32)
    assert load_sae(tmp_path / "saved").normalize_activations == normalization


def test_a_folder_without_a_config_or_weights_is_refused(sae_folder: SaeFolder, tmp_path: Path) -> None:
    with pytest.raises(InvalidBundle, match="cannot be read"):
        load_sae(tmp_path / "nothing")
    folder = sae_folder()
    (folder / WEIGHTS_FILE).unlink()
    with pytest.raises(InvalidBundle, match="cannot be read"):
        load_sae(folder)
    (folder / CONFIG_FILE).write_text("{")
    with pytest.raises(InvalidBundle, match="the file"):
        load_sae(folder)


def test_a_transcoders_tensors_are_checked_before_allocation_and_moved_together(sae_folder: SaeFolder) -> None:
    folder = sae_folder(**{**TRANSCODER, "architecture": "skip_transcoder"})
    with pytest.raises(InvalidBundle, match=r"holds the tensors .* expected .*W_skip"):
        load_sae(folder)
    change_weights(folder, W_dec=torch.zeros(D_SAE, 8), b_dec=torch.zeros(8), W_skip=torch.ones(8, D_MODEL))
    sae = load_sae(folder, d_model=D_MODEL)
    assert (sae.architecture, sae.d_model, sae.d_out) == ("skip_transcoder", D_MODEL, 8)
    assert sae.W_skip is not None
    assert any(tensor is sae.W_skip for tensor in sae.tensors())
    assert sae.to("cpu", torch.float64).reconstruct(torch.ones(1, D_MODEL)).tolist() == [[D_MODEL] * 8]
    change_weights(folder, W_skip=torch.full((8, D_MODEL), float("inf")))
    with pytest.raises(InvalidBundle, match="W_skip holds NaN or infinite"):
        load_sae(folder)
