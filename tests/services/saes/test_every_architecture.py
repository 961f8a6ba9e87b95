"""Everything SAELens can save, saved by SAELens itself: read with the same numbers, or refused by a sentence."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from services.saes.bundle import load_sae, save_sae
from services.saes.config import CONFIG_FILE
from services.saes.errors import InvalidBundle, SaeMismatch

D_IN, D_OUT, D_SAE, K = 12, 10, 40, 5
HOOK, HOOK_OUT = "blocks.1.hook_resid_mid", "blocks.1.hook_mlp_out"

READ = (
    "standard",
    "gated",
    "topk",
    "jumprelu",
    "transcoder",
    "skip_transcoder",
    "jumprelu_transcoder",
    "jumprelu_skip_transcoder",
)
REFUSED = {
    "abstopk": "may be negative",
    "temporal": "tokens before",
    "matching_pursuit": "one after another",
}
BY_BATCH = ("batchtopk", "matryoshka_batchtopk")
TRAINED = (
    ("standard", None),
    ("gated", None),
    ("jumprelu", None),
    *((name, rescaled) for name in ("topk", *BY_BATCH) for rescaled in (True, False)),
)
"""With whether features are scaled by decoder norms, where SAELens has a choice."""

pytestmark = pytest.mark.filterwarnings("ignore")


def registry() -> dict[str, Any]:
    from sae_lens.registry import SAE_CLASS_REGISTRY  # noqa: PLC0415 - takes seconds; only the tests that need it pay

    return dict(SAE_CLASS_REGISTRY)


def made(architecture: str, **changes: Any) -> Any:
    """A random SAE of SAELens' own class."""
    from sae_lens.saes.sae import SAEMetadata  # noqa: PLC0415

    sae_class, config_class = registry()[architecture]
    transcodes = architecture.endswith("transcoder")
    metadata = {"hook_name": HOOK, "prepend_bos": True} | ({"hook_name_out": HOOK_OUT} if transcodes else {})
    fields: dict[str, Any] = {"d_in": D_IN, "d_sae": D_SAE, "metadata": SAEMetadata(**metadata)}
    if architecture.endswith("topk"):
        fields["k"] = K
    if transcodes:
        fields |= {"d_out": D_OUT, "apply_b_dec_to_input": False}
    if architecture == "temporal":
        fields |= {"n_heads": 2, "bottleneck_factor": 2}
    sae = sae_class(config_class(**fields | changes))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return sae


def inputs(count: int = 50, width: int = D_IN) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(1))


def assert_the_same(folder: Path, x: torch.Tensor) -> None:
    """lensd's features, columns and reconstructions of a folder are those of what SAELens loads from it."""
    from sae_lens import SAE  # noqa: PLC0415 - as above

    ours, theirs = load_sae(folder), SAE.load_from_disk(folder)
    with torch.no_grad():
        features = theirs.encode(x)
        assert 0 < int((features > 0).sum()) < features.numel()
        torch.testing.assert_close(ours.encode(x), features, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.encode_columns(x, [3, 8]), features[:, [3, 8]], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.decode(features, x), theirs(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.reconstruct(x), theirs(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            ours.to("cpu", torch.float64).reconstruct(x).float(), theirs(x), rtol=1e-4, atol=1e-4
        )


def test_no_architecture_of_saelens_is_forgotten() -> None:
    assert set(registry()) == {*READ, *REFUSED}


@pytest.mark.parametrize("architecture", READ)
def test_what_saelens_saves_encodes_and_decodes_as_in_saelens(architecture: str, tmp_path: Path) -> None:
    made(architecture).save_model(tmp_path / "sae")
    assert load_sae(tmp_path / "sae").architecture == architecture
    assert_the_same(tmp_path / "sae", inputs())


@pytest.mark.parametrize("architecture", REFUSED)
def test_what_lensd_does_not_read_is_refused_by_a_sentence(architecture: str, tmp_path: Path) -> None:
    made(architecture).save_model(tmp_path / "sae")
    with pytest.raises(InvalidBundle, match=REFUSED[architecture]):
        load_sae(tmp_path / "sae")


@pytest.mark.parametrize("architecture", READ)
def test_what_lensd_saves_saelens_loads_exactly(architecture: str, tmp_path: Path) -> None:
    made(architecture).save_model(tmp_path / "sae")
    loaded = load_sae(tmp_path / "sae")
    save_sae(loaded, tmp_path / "again", model_name="tiny", context=16, dtype=torch.float32)
    assert load_sae(tmp_path / "again").architecture == architecture
    assert_the_same(tmp_path / "again", inputs())
    assert torch.equal(load_sae(tmp_path / "again").reconstruct(inputs()), loaded.reconstruct(inputs()))


@pytest.mark.parametrize("architecture", ["transcoder", "jumprelu_skip_transcoder"])
@pytest.mark.parametrize("normalization", ["expected_average_only_in", "constant_norm_rescale", "layer_norm"])
def test_a_transcoder_scales_what_it_reads_and_not_what_it_writes(
    architecture: str, normalization: str, tmp_path: Path
) -> None:
    made(architecture, normalize_activations=normalization).save_model(tmp_path / "sae")
    assert_the_same(tmp_path / "sae", inputs())


def test_features_alone_are_not_what_a_skip_transcoder_writes(tmp_path: Path) -> None:
    made("skip_transcoder").save_model(tmp_path / "sae")
    sae = load_sae(tmp_path / "sae")
    with pytest.raises(SaeMismatch, match="a skip adds to what features write"):
        sae.decode(sae.encode(inputs()))


@pytest.mark.parametrize("architecture", ["standard", "gated", "topk", "jumprelu"])
def test_heads_side_by_side_are_read_as_saelens_reshapes_them(architecture: str, tmp_path: Path) -> None:
    from sae_lens import SAE  # noqa: PLC0415 - as above
    from sae_lens.saes.sae import SAEMetadata  # noqa: PLC0415

    metadata = SAEMetadata(hook_name="blocks.1.attn.hook_z", prepend_bos=True)
    made(architecture, reshape_activations="hook_z", metadata=metadata).save_model(tmp_path / "sae")
    ours, theirs, z = load_sae(tmp_path / "sae"), SAE.load_from_disk(tmp_path / "sae"), inputs().reshape(50, 4, 3)
    with torch.no_grad():
        torch.testing.assert_close(ours.encode(z.flatten(1)), theirs.encode(z), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.reconstruct(z.flatten(1)), theirs(z).flatten(1), rtol=1e-5, atol=1e-5)


def _batches(size: int) -> Iterator[torch.Tensor]:
    """Sparse combinations of fixed directions, so that a few steps find something."""
    generator = torch.Generator().manual_seed(2)
    directions = torch.randn(24, D_IN, generator=generator)
    while True:
        on = torch.rand(size, 24, generator=generator) * (torch.rand(size, 24, generator=generator) < 0.1)
        yield on @ directions + 0.01 * torch.randn(size, D_IN, generator=generator)


@pytest.mark.parametrize(("architecture", "rescaled"), TRAINED)
def test_what_saelens_trains_is_read_as_saelens_reads_it(
    architecture: str, rescaled: bool | None, tmp_path: Path
) -> None:
    """BatchTopK and Matryoshka SAEs come out as JumpReLU: the batch's threshold, once for every feature."""
    from sae_lens.config import SAETrainerConfig  # noqa: PLC0415 - as above
    from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY  # noqa: PLC0415
    from sae_lens.saes.sae import SAEMetadata  # noqa: PLC0415
    from sae_lens.training.sae_trainer import SAETrainer  # noqa: PLC0415

    sae_class, config_class = SAE_TRAINING_CLASS_REGISTRY[architecture]
    fields: dict[str, Any] = {"metadata": SAEMetadata(hook_name=HOOK, prepend_bos=True)}
    if rescaled is not None:
        fields |= {"k": 3, "rescale_acts_by_decoder_norm": rescaled, "use_sparse_activations": False}
    if architecture == "matryoshka_batchtopk":
        fields["matryoshka_widths"] = [10, D_SAE]
    torch.manual_seed(0)
    sae = sae_class(config_class(d_in=D_IN, d_sae=D_SAE, **fields))
    config = SAETrainerConfig(
        total_training_samples=64 * 60,
        train_batch_size_samples=64,
        lr=1e-2,
        lr_end=1e-3,
    )
    with torch.enable_grad():
        trained = SAETrainer(config, sae, _batches(64)).fit()
    trained.save_inference_model(tmp_path / "sae")
    on_disk = "jumprelu" if architecture in BY_BATCH else architecture
    assert json.loads((tmp_path / "sae" / CONFIG_FILE).read_text())["architecture"] == on_disk
    assert_the_same(tmp_path / "sae", next(_batches(50)))
