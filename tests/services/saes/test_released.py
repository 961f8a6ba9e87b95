"""Releases that SAELens converts or changes while loading, held against SAELens' own loaders on the same cache."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save

from services.catalogue.operator import CatalogueError, SaeLensEntry, file_sha256
from services.saes.bundle import load_sae
from services.saes.config import CONFIG_FILE, WEIGHTS_FILE
from services.saes.hub import HubFolder, locate
from services.saes.prepare import prepare_sae
from tests.services.saes.hub_cache import REVISION, keep

D_IN, D_OUT, D_SAE = 12, 12, 40

pytestmark = pytest.mark.filterwarnings("ignore")

Tensors = dict[str, torch.Tensor]


def entry(release: str, sae_id: str, weights: bytes) -> SaeLensEntry:
    return SaeLensEntry(
        id="tiny",
        model="m",
        release=release,
        sae_id=sae_id,
        revision=REVISION,
        cache="hub",
        sha256=hashlib.sha256(weights).hexdigest(),
    )


def random(**shapes: tuple[int, ...]) -> Tensors:
    """Thresholds and log-thresholds among them, so of either sign: SAELens' are what they are."""
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def located(release: str, sae_id: str) -> HubFolder:
    return locate(entry(release, sae_id, b""))


class Cached:
    """An SAE of a real release with made-up weights, in a cache: as lensd prepares it, and as SAELens loads it."""

    def __init__(self, root: Path, release: str, sae_id: str, tensors: Tensors, **about: Any) -> None:
        self.release, self.sae_id, self.root = release, sae_id, root
        self.place = located(release, sae_id)
        self.weights = save({name: tensor.contiguous() for name, tensor in tensors.items()})
        files = {self.place.filename(self.place.weights): self.weights}
        for name, content in about.items():
            text = json.dumps(content) if name.endswith(".json") else yaml.safe_dump(content)
            files[self.place.filename(name)] = text.encode()
        keep(root, files, self.place.repository)

    def prepared(self) -> Path:
        prepare_sae(entry(self.release, self.sae_id, self.weights), self.root, self.root / "home")
        return self.root / "home" / "saes" / "tiny"

    def by_saelens(self, monkeypatch: pytest.MonkeyPatch, dtype: str = "float32") -> Any:
        """What `SAE.from_pretrained` makes of it, its downloads turned to the cache."""
        from huggingface_hub import hf_hub_download  # noqa: PLC0415 - takes seconds; only the tests that need it pay
        from sae_lens import SAE  # noqa: PLC0415
        from sae_lens.loading import pretrained_sae_loaders  # noqa: PLC0415

        def downloaded(repo_id: str, filename: str, subfolder: str | None = None, **_: Any) -> str:
            return hf_hub_download(
                repo_id,
                filename,
                subfolder=subfolder,
                revision=REVISION,
                cache_dir=self.root / "hub",
                local_files_only=True,
            )

        def shapes(repo_id: str, filename: str) -> dict[str, list[int]]:
            with safe_open(downloaded(repo_id, filename), framework="pt") as file:
                return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118

        monkeypatch.setattr(pretrained_sae_loaders, "hf_hub_download", downloaded)
        monkeypatch.setattr(pretrained_sae_loaders, "get_safetensors_tensor_shapes", shapes)
        return SAE.from_pretrained(self.release, self.sae_id, dtype=dtype)


def inputs() -> torch.Tensor:
    return torch.randn(50, D_IN, generator=torch.Generator().manual_seed(1)) + 0.5


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def assert_as_in_saelens(stored: Path, theirs: Any) -> None:
    """Features and reconstructions of what is stored, read by lensd and by SAELens, are those that SAELens loads."""
    from sae_lens import SAE  # noqa: PLC0415 - as above

    ours, again, x = load_sae(stored), SAE.load_from_disk(stored), inputs()
    with torch.no_grad():
        features, rebuilt = theirs.encode(x), theirs(x)
        assert 0 < int((features > 0).sum()) < features.numel()
        assert_close(ours.encode(x), features)
        assert_close(ours.encode_columns(x, [3, 8]), features[:, [3, 8]])
        assert_close(ours.decode(features, x), rebuilt)
        assert_close(ours.reconstruct(x), rebuilt)
        heads = x.reshape(len(x), 4, 3) if again.cfg.reshape_activations == "hook_z" else x
        assert_close(again(heads).flatten(1), rebuilt)
    for name in ("model_name", "prepend_bos", "context_size", "hook_name_out"):
        assert getattr(again.cfg.metadata, name) == getattr(theirs.cfg.metadata, name)
    for name in ("d_in", "d_sae", "dtype", "apply_b_dec_to_input", "normalize_activations"):
        assert getattr(again.cfg, name) == getattr(theirs.cfg, name)


GEMMA = {"w_enc": (D_IN, D_SAE), "w_dec": (D_SAE, D_OUT), "b_enc": (D_SAE,), "b_dec": (D_OUT,), "threshold": (D_SAE,)}
AFFINE = {**GEMMA, "affine_skip_connection": (D_IN, D_OUT)}
GEMMA_CONFIG = "{folder}/config.json"


@pytest.mark.parametrize("configured", [True, False], ids=["config.json", "names alone"])
@pytest.mark.parametrize(
    ("release", "sae_id", "hook"),
    [
        ("270m-it-res-all", "layer_0_width_16k_l0_big", "hook_resid_post"),
        ("270m-it-mlp", "layer_9_width_65k_l0_small", "hook_mlp_out"),
        ("4b-pt-att-all", "layer_9_width_262k_l0_small", "attn.hook_z"),
        ("1b-pt-transcoders-all", "layer_0_width_16k_l0_big", "mlp.hook_in"),
        ("1b-pt-transcoders", "transcoder/layer_7_width_65k_l0_small_affine", "mlp.hook_in"),
    ],
)
def test_gemma_scope_2_is_read_as_saelens_converts_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    release: str,
    sae_id: str,
    hook: str,
    configured: bool,
) -> None:
    affine = "affine" in sae_id
    said = {"architecture": "jump_relu", "model_name": "gemma-v3-1b-pt", "affine_connection": affine}
    about = {GEMMA_CONFIG: said} if configured else {}
    cached = Cached(tmp_path, f"gemma-scope-2-{release}", sae_id, random(**(AFFINE if affine else GEMMA)), **about)
    stored, theirs = cached.prepared(), cached.by_saelens(monkeypatch)
    assert_as_in_saelens(stored, theirs)
    layer = sae_id.split("layer_")[1].split("_", maxsplit=1)[0]
    assert load_sae(stored).hook_name == f"blocks.{layer}.{hook}"
    assert theirs.cfg.metadata.hook_name == f"blocks.{layer}.{hook.replace('mlp.hook_in', 'hook_mlp_in')}"
    assert load_sae(stored).architecture == theirs.cfg.architecture()


LLAMA = {
    "encoder.weight": (D_SAE, D_IN),
    "decoder.weight": (D_IN, D_SAE),
    "encoder.bias": (D_SAE,),
    "decoder.bias": (D_IN,),
}
LLAMA_FILE = "{folder}/hyperparams.json"
LLAMA_SAID = {
    "d_model": D_IN,
    "d_sae": D_SAE,
    "jump_relu_threshold": 1.25,
    "dataset_average_activation_norm": {"in": 4.0, "out": 4.0},
    "hook_point_in": "blocks.31.hook_resid_post",
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_llama_scope_is_read_as_saelens_converts_and_scales_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in random(**LLAMA).items()}
    cached = Cached(tmp_path, "llama_scope_lxr_8x", "l31r_8x", tensors, **{LLAMA_FILE: LLAMA_SAID})
    assert cached.place.norm_scale is not None
    assert_as_in_saelens(cached.prepared(), cached.by_saelens(monkeypatch))


def test_llama_scope_of_the_distilled_model_is_read_as_saelens_converts_and_scales_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    features = D_IN * 4
    widths = {
        "encoder.weight": (features, D_IN),
        "decoder.weight": (D_IN, features),
        "encoder.bias": (features,),
        "decoder.bias": (D_IN,),
        "log_jumprelu_threshold": (features,),
    }
    config = {"d_model": D_IN, "expansion_factor": 4, "hook_point_in": "blocks.31.hook_resid_post"}
    about = {"{folder}/config.json": config}
    cached = Cached(tmp_path, "llama_scope_r1_distill", "l31r_800m_openr1_math", random(**widths), **about)
    assert_as_in_saelens(cached.prepared(), cached.by_saelens(monkeypatch))


QWEN = {"W_enc": (D_SAE, D_IN), "W_dec": (D_SAE, D_OUT), "b_enc": (D_SAE,), "b_dec": (D_OUT,)}


@pytest.mark.parametrize(
    ("release", "run", "config"),
    [
        ("mwhanna-qwen3-4b-transcoders", "wandb-config.yaml", {"config.yaml": {"model_name": "Qwen/Qwen3-4B"}}),
        ("mwhanna-qwen3-14b-transcoders", "wanb-config.yaml", {}),
    ],
)
def test_transcoders_of_qwen_are_read_as_saelens_converts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: str, run: str, config: dict[str, Any]
) -> None:
    said = {"d_model": {"value": D_IN}, "d_feature": {"value": D_SAE}, "batch_size": {"value": 256}}
    cached = Cached(tmp_path, release, "layer_7", random(**QWEN), **{run: said}, **config)
    stored, theirs = cached.prepared(), cached.by_saelens(monkeypatch)
    assert_as_in_saelens(stored, theirs)
    assert load_sae(stored).hook_name == theirs.cfg.metadata.hook_name == "blocks.7.mlp.hook_in"


@pytest.mark.parametrize(
    ("tensors", "about", "message"),
    [
        ({**GEMMA, "w_enc": (D_IN,)}, None, r"W_enc has the shape \[12\]"),
        ({"W_enc": (2, 3)}, None, r"the weights hold \['W_enc'\], not w_enc"),
        ({**GEMMA, "threshold": (3,)}, None, r"threshold has shape \[3\]"),
        (GEMMA, {"architecture": "jump_relu"}, "is not laid out as SAELens reads it: 'model_name'"),
        (GEMMA, {"architecture": "topk"}, "does not say that the architecture is jump_relu"),
        (GEMMA, ["jump_relu"], "does not say that the architecture is jump_relu"),
    ],
)
def test_files_that_are_not_laid_out_as_expected_are_refused(
    tmp_path: Path, tensors: dict[str, tuple[int, ...]], about: Any, message: str
) -> None:
    said = {} if about is None else {GEMMA_CONFIG: about}
    cached = Cached(tmp_path, "gemma-scope-2-270m-it-res-all", "layer_0_width_16k_l0_big", random(**tensors), **said)
    with pytest.raises(CatalogueError, match=message):
        cached.prepared()
    assert list((tmp_path / "home" / "saes").iterdir()) == []


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({}, r"hyperparams.json of fnlp/.* is not in .*--include 'Llama3_1-8B-Base-L31R-8x/hyperparams.json'"),
        ({"jump_relu_threshold": "1"}, "Llama3_1-8B-Base-L31R-8x/hyperparams.json says no jump_relu_threshold"),
        ({"dataset_average_activation_norm": {"in": 0.0}}, "is not laid out as SAELens reads it: .*division by zero"),
        ({"dataset_average_activation_norm": {}}, "is not laid out as SAELens reads it: 'in'"),
    ],
)
def test_a_small_file_that_is_not_there_or_says_too_little_is_told(
    tmp_path: Path, about: dict[str, Any], message: str
) -> None:
    said = {LLAMA_FILE: LLAMA_SAID | about} if about else {}
    cached = Cached(tmp_path, "llama_scope_lxr_8x", "l31r_8x", random(**LLAMA), **said)
    with pytest.raises(CatalogueError, match=message):
        cached.prepared()


def test_converted_weights_are_pinned_as_they_lie_in_the_repository(tmp_path: Path) -> None:
    cached = Cached(tmp_path, "gemma-scope-2-270m-it-res-all", "layer_0_width_16k_l0_big", random(**GEMMA))
    stored = cached.prepared()
    assert load_sae(stored).sha256 == file_sha256(stored / WEIGHTS_FILE) != hashlib.sha256(cached.weights).hexdigest()
    other = entry(cached.release, cached.sae_id, cached.weights + b" ")
    with pytest.raises(CatalogueError, match=r"params.safetensors of google/.* has sha256 .*, expected"):
        prepare_sae(other, tmp_path, tmp_path / "home")


def test_preparing_again_gives_the_same_bytes(tmp_path: Path) -> None:
    """What an index was made over is told by them."""
    cached = Cached(tmp_path, "llama_scope_lxr_8x", "l31r_8x", random(**LLAMA), **{LLAMA_FILE: LLAMA_SAID})
    first, second = ([(cached.prepared() / name).read_bytes() for name in (CONFIG_FILE, WEIGHTS_FILE)] for _ in "12")
    assert first == second
