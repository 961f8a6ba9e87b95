"""What SAELens folds after loading or asks of the model, folded when an SAE is prepared; by its effects on a model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from services.catalogue.operator import CatalogueError, SaeEntry, file_sha256
from services.saes.bundle import load_sae
from services.saes.config import CONFIG_FILE, WEIGHTS_FILE
from services.saes.prepare import prepare_sae
from tests.services.saes.test_every_architecture import D_IN, HOOK, assert_the_same, inputs, made
from tests.services.saes.test_released import Cached, assert_close, random

pytestmark = pytest.mark.filterwarnings("ignore")

D_SAE = 40
STANDARD = {"W_enc": (D_IN, D_SAE), "W_dec": (D_SAE, D_IN), "b_enc": (D_SAE,), "b_dec": (D_IN,)}
OF_CENTRED = {"center_writing_weights": True}


def old_config(hook: str, **more: Any) -> dict[str, Any]:
    """As SAELens wrote it when these were trained."""
    config = {"d_in": D_IN, "d_sae": D_SAE, "dtype": "torch.float32", "device": "cpu", "hook_point": hook}
    return {**config, "model_name": "gpt2-small", "prepend_bos": True, "context_size": 128, **more}


@pytest.mark.parametrize(("normalized", "folded"), [(True, True), ("expected_average_only_in", True), (False, False)])
def test_a_norm_scale_is_folded_where_saelens_folds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, normalized: bool | str, folded: bool
) -> None:
    config = old_config("blocks.12.hook_resid_post", normalize_activations=normalized, model_name="gemma-2b")
    about = {"{folder}/cfg.json": config}
    cached = Cached(tmp_path, "gemma-2b-res-jb", "blocks.12.hook_resid_post", random(**STANDARD), **about)
    stored, theirs, x = cached.prepared(), cached.by_saelens(monkeypatch), inputs()
    assert cached.place.norm_scale is not None
    with torch.no_grad():
        assert_close(load_sae(stored).encode(x), theirs.encode(x))
        assert_close(load_sae(stored).reconstruct(x), theirs(x))
    assert_the_same(stored, x)
    assert ((stored / WEIGHTS_FILE).read_bytes() == cached.weights) is not folded


@pytest.mark.parametrize(
    ("release", "sae_id", "hook"),
    [
        ("gpt2-small-res-jb", "blocks.8.hook_resid_pre", "blocks.8.hook_resid_pre"),
        ("gpt2-small-mlp-tm", "blocks.8.hook_mlp_out", "blocks.8.hook_mlp_out"),
    ],
)
def test_a_release_for_a_centred_model_reads_activations_that_are_not_centred(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: str, sae_id: str, hook: str
) -> None:
    """The second has a norm scale, too."""
    about = {"{folder}/cfg.json": old_config(hook, normalize_activations="expected_average_only_in")}
    cached = Cached(tmp_path, release, sae_id, random(**STANDARD), **about)
    stored, theirs, x = cached.prepared(), cached.by_saelens(monkeypatch, "float64"), (inputs() + 3).double()
    ours, centred = load_sae(stored, dtype=torch.float64), x - x.mean(dim=-1, keepdim=True)
    assert theirs.cfg.metadata.model_from_pretrained_kwargs == OF_CENTRED
    with torch.no_grad():
        assert_close(ours.encode(x), theirs.encode(centred))
        assert_close(ours.reconstruct(x), theirs(centred))
    assert_the_same(stored, inputs())
    assert (stored / WEIGHTS_FILE).stat().st_mode & 0o777 == 0o644


def saved(folder: Path, architecture: str, model: str = "gpt2", **changes: Any) -> SaeEntry:
    """Of SAELens' own class, trained on a centred model by what it says."""
    from sae_lens.saes.sae import SAEMetadata  # noqa: PLC0415 - takes seconds; only the tests that need it pay

    changes = {"hook_name": HOOK, "model_from_pretrained_kwargs": OF_CENTRED} | changes
    made(architecture, metadata=SAEMetadata(model_name=model, prepend_bos=True, **changes)).save_model(folder)
    return SaeEntry(id="tiny", model="m", path=folder.name, sha256=file_sha256(folder / WEIGHTS_FILE))


@pytest.mark.parametrize("architecture", ["standard", "gated", "topk", "jumprelu"])
@pytest.mark.parametrize("subtracted", [True, False])
def test_the_centring_is_folded_into_every_architecture(architecture: str, subtracted: bool, tmp_path: Path) -> None:
    from sae_lens import SAE  # noqa: PLC0415 - as above

    pinned = saved(tmp_path / "sae", architecture)
    config = tmp_path / "sae" / CONFIG_FILE
    config.write_text(json.dumps(json.loads(config.read_bytes()) | {"apply_b_dec_to_input": subtracted}))
    prepare_sae(pinned, tmp_path, tmp_path / "home")
    ours = load_sae(tmp_path / "home/saes/tiny", dtype=torch.float64)
    theirs, x = SAE.load_from_disk(tmp_path / "sae", dtype="float64"), (inputs() + 3).double()
    centred = x - x.mean(dim=-1, keepdim=True)
    with torch.no_grad():
        assert_close(ours.encode(x), theirs.encode(centred))
        assert_close(ours.reconstruct(x), theirs(centred))


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("standard", {"model": "llama"}),
        ("standard", {"hook_name": "blocks.1.hook_mlp_in"}),
        ("transcoder", {"hook_name_out": "blocks.1.hook_mlp_out"}),
    ],
)
def test_a_centring_that_cannot_be_folded_is_refused(
    architecture: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    pinned = saved(tmp_path / "sae", architecture, **changes)
    with pytest.raises(CatalogueError, match="folds the centring into SAEs of GPT-2's residual stream"):
        prepare_sae(pinned, tmp_path, tmp_path / "home")


def gpt2(*, centred: bool) -> Any:
    """A random model of GPT-2's architecture, its writing weights centred or as they are."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig  # noqa: PLC0415 - as above

    config = HookedTransformerConfig(
        n_layers=2,
        d_model=D_IN,
        n_ctx=16,
        d_head=4,
        n_heads=3,
        d_mlp=24,
        d_vocab=30,
        act_fn="gelu_new",
        normalization_type="LN",
        seed=0,
        dtype=torch.float64,
    )
    model = HookedTransformer(config)
    generator = torch.Generator().manual_seed(3)
    state = {
        name: value if name.endswith(("mask", "IGNORE")) else torch.randn(value.shape, generator=generator).double()
        for name, value in model.state_dict().items()
    }
    processing = {"fold_ln": False, "center_unembed": False, "fold_value_biases": False}
    model.load_and_process_state_dict(state, center_writing_weights=centred, **processing)
    return model


@pytest.mark.parametrize("hook", ["blocks.1.hook_resid_pre", "blocks.0.hook_attn_out", "blocks.1.hook_mlp_out"])
def test_splicing_the_folded_sae_does_to_the_model_what_saelens_does_to_the_centred_one(
    hook: str, tmp_path: Path
) -> None:
    """Also with one feature ablated and the error kept: nothing behind the hook reads the mean."""
    from sae_lens import SAE  # noqa: PLC0415 - as above

    pinned = saved(tmp_path / "sae", "standard", hook_name=hook)
    prepare_sae(pinned, tmp_path, tmp_path / "home")
    ours = load_sae(tmp_path / "home/saes/tiny", dtype=torch.float64)
    theirs = SAE.load_from_disk(tmp_path / "sae", dtype="float64")
    tokens = torch.randint(0, 30, (3, 10), generator=torch.Generator().manual_seed(4))
    plain, centred = gpt2(centred=False), gpt2(centred=True)

    def logits(model: Any, edit: Any) -> torch.Tensor:
        run: torch.Tensor = model.run_with_hooks(tokens, fwd_hooks=[(hook, lambda x, hook: edit(x))])
        return run

    def without_first(x: torch.Tensor, features: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
        return x - features[..., :1] * directions[0]

    with torch.no_grad():
        assert float((plain.run_with_cache(tokens)[1][hook].mean(dim=-1)).abs().max()) > 0.1
        assert_close(plain(tokens), centred(tokens))
        spliced = logits(plain, lambda x: ours.reconstruct(x.flatten(0, 1)).reshape(x.shape))
        assert_close(spliced, logits(centred, theirs))
        ablated = logits(plain, lambda x: without_first(x, ours.encode(x.flatten(0, 1)).reshape(3, 10, -1), ours.W_dec))
        expected = logits(centred, lambda x: without_first(x, theirs.encode(x), theirs.W_dec))
        assert_close(ablated, expected)
        assert not torch.allclose(ablated, plain(tokens), atol=1e-3)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"normalize_activations": "expected_average_only_in"}, "architecture: Field required"),
        ([1], "the file: Input should be"),
        (old_config(HOOK, normalize_activations=True) | {"d_sae": 7}, "cfg.json says"),
        (old_config(HOOK, normalize_activations=True) | {"d_sae": 0}, "d_sae: Input should be greater than 0"),
    ],
)
def test_a_config_that_is_none_is_refused_before_anything_is_folded(tmp_path: Path, config: Any, message: str) -> None:
    about = {"{folder}/cfg.json": config}
    cached = Cached(tmp_path, "gemma-2b-res-jb", "blocks.12.hook_resid_post", random(**STANDARD), **about)
    with pytest.raises(CatalogueError, match=message):
        cached.prepared()


def test_what_is_not_to_be_folded_is_copied_as_it_is(tmp_path: Path) -> None:
    pinned = saved(tmp_path / "sae", "standard", model_from_pretrained_kwargs={"fold_ln": False})
    prepare_sae(pinned, tmp_path, tmp_path / "home")
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        assert (tmp_path / "home/saes/tiny" / name).read_bytes() == (tmp_path / "sae" / name).read_bytes()
