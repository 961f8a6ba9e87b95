"""The SAE's arithmetic, by hand and against SAELens."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from services.saes.activation import Activation
from services.saes.bundle import load_sae
from services.saes.errors import SaeMismatch
from services.saes.normalization import Normalization
from services.saes.sae import Gated, JumpRelu, Relu, Sae, TopK
from tests.services.saes.conftest import D_MODEL, SHIPPED, SaeFolder


@pytest.fixture
def toy() -> Sae:
    """Features are the coordinates and their negatives, around b_dec = (1, 1)."""
    directions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    return Sae(
        W_enc=directions.T.contiguous(),
        b_enc=torch.tensor([0.0, 0.0, 0.0, -0.5]),
        W_dec=directions,
        b_dec=torch.ones(2),
        activation=TopK(1),
        apply_b_dec_to_input=True,
        hook_name="blocks.0.hook_resid_post",
        norm_threshold=10.0,
    )


def test_topk_keeps_the_largest_and_relu_the_positive(toy: Sae) -> None:
    x = torch.tensor([[4.0, 3.0], [1.0, 1.0], [1.0, -4.0]])
    expected = torch.tensor([[3.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 4.5]])
    assert torch.equal(toy.encode(x), expected)
    assert torch.equal(toy.decode(expected), torch.tensor([[4.0, 1.0], [1.0, 1.0], [1.0, -3.5]]))


def test_the_standard_sae_keeps_all_that_is_positive(toy: Sae) -> None:
    features = replace(toy, activation=Relu()).encode(torch.tensor([[4.0, 3.0]]))
    assert torch.equal(features, torch.tensor([[3.0, 2.0, 0.0, 0.0]]))


def test_the_decoder_bias_is_subtracted_only_where_the_sae_was_trained_so(toy: Sae) -> None:
    features = replace(toy, apply_b_dec_to_input=False).encode(torch.tensor([[4.0, 3.0]]))
    assert torch.equal(features, torch.tensor([[4.0, 0.0, 0.0, 0.0]]))


def test_tokens_over_the_norm_threshold_are_told_apart(toy: Sae) -> None:
    x = torch.tensor([[6.0, 8.0], [6.0, 8.1]])
    assert toy.within_norm(x).tolist() == [True, False]
    assert replace(toy, norm_threshold=None).within_norm(x).tolist() == [True, True]


@pytest.mark.parametrize("count", [1, 5, 9, 1000])
@pytest.mark.parametrize("architecture", ["topk", "standard"])
def test_the_top_features_are_the_largest_of_all_features(sae_folder: SaeFolder, architecture: str, count: int) -> None:
    sae = load_sae(sae_folder(architecture=architecture))
    x = torch.randn(30, D_MODEL, generator=torch.Generator().manual_seed(1))
    values, indices = sae.encode_top(x, count)
    features = sae.encode(x)
    assert torch.equal(values, features.sort(dim=-1, descending=True).values[:, :count])
    assert torch.equal(values, features.gather(-1, indices))


def _compare(folder: Path, x: torch.Tensor) -> None:
    from sae_lens import SAE  # noqa: PLC0415 - takes seconds; only the tests that need it pay

    ours, theirs = load_sae(folder), SAE.load_from_disk(folder)
    assert theirs.W_enc.dtype == torch.float32
    for name in ("W_enc", "W_dec", "b_dec"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name).data, rtol=0, atol=0)
    with torch.no_grad():
        features = theirs.encode(x)
        assert 0 < int((features > 0).sum()) < features.numel()
        torch.testing.assert_close(ours.encode(x), features, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.encode_columns(x, [3, 8]), features[:, [3, 8]], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.decode(features), theirs.decode(features), rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("architecture", ["topk", "standard", "jumprelu", "gated"])
@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
def test_encode_and_decode_are_saelens_own(
    sae_folder: SaeFolder, architecture: str, apply_b_dec_to_input: bool
) -> None:
    folder = sae_folder(architecture=architecture, apply_b_dec_to_input=apply_b_dec_to_input)
    _compare(folder, torch.randn(50, D_MODEL, generator=torch.Generator().manual_seed(1)))


@pytest.mark.filterwarnings("ignore")
def test_activations_scaled_by_decoder_norms_are_folded_into_the_weights(sae_folder: SaeFolder) -> None:
    from sae_lens import SAE  # noqa: PLC0415 - takes seconds; only the tests that need it pay

    folder = sae_folder(rescale_acts_by_decoder_norm=True)
    ours, theirs = load_sae(folder), SAE.load_from_disk(folder)
    x = torch.randn(50, D_MODEL, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert ours.decoder_norms_folded
        torch.testing.assert_close(ours.encode(x), theirs.encode(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.reconstruct(x), theirs(x), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("architecture", ["topk", "standard", "jumprelu", "gated"])
@pytest.mark.parametrize("normalization", ["expected_average_only_in", "constant_norm_rescale", "layer_norm"])
def test_activations_are_normalized_and_scaled_back_as_in_saelens(
    sae_folder: SaeFolder, architecture: str, normalization: str
) -> None:
    """In float64: reconstructions reach hundreds here, where float32 rounds away what a wrong formula would show."""
    from sae_lens import SAE  # noqa: PLC0415 - takes seconds; only the tests that need it pay

    folder = sae_folder(architecture=architecture, normalize_activations=normalization)
    ours, theirs = load_sae(folder, dtype=torch.float64), SAE.load_from_disk(folder, dtype="float64")
    assert theirs.W_enc.dtype == torch.float64
    x = 7 * torch.randn(50, D_MODEL, generator=torch.Generator().manual_seed(1)).double() + 2
    with torch.no_grad():
        features = theirs.encode(x)
        assert 0 < int((features > 0).sum()) < features.numel()
        torch.testing.assert_close(ours.encode(x), features, rtol=0, atol=1e-9)
        torch.testing.assert_close(ours.encode_columns(x, [3, 8]), features[:, [3, 8]], rtol=0, atol=1e-9)
        torch.testing.assert_close(ours.reconstruct(x), theirs(x), rtol=0, atol=1e-9)


@pytest.mark.parametrize("normalization", ["constant_norm_rescale", "layer_norm"])
def test_features_alone_do_not_give_back_what_was_scaled_by_token(toy: Sae, normalization: Normalization) -> None:
    sae = replace(toy, normalize_activations=normalization)
    with pytest.raises(SaeMismatch, match="scales each token"):
        sae.decode(torch.ones(1, 4))
    assert bool(sae.reconstruct(torch.zeros(1, 2)).isfinite().all())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [f"smollm2-135m-l{layer}-resid-post" for layer in (7, 15, 23)])
def test_saelens_loads_every_shipped_sae_exactly_and_encodes_as_we_do(name: str) -> None:
    folder = SHIPPED.parent / name
    sae = load_sae(folder)
    assert sae.mean_activation is not None
    noise = torch.randn(200, sae.d_model, generator=torch.Generator().manual_seed(0))
    directions = sae.W_dec[torch.arange(0, 4000, 20)]
    _compare(folder, sae.mean_activation + 60 * directions + noise)


def _seeded(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


ACTIVATIONS: dict[str, Activation] = {
    "topk": TopK(5),
    "standard": Relu(),
    "jumprelu": JumpRelu(_seeded(40).abs() * 3),
    "gated": Gated(_seeded(40), _seeded(40) / 4, _seeded(40).flip(0)),
}


@pytest.fixture(params=ACTIVATIONS)
def any_sae(request: pytest.FixtureRequest, sae_folder: SaeFolder) -> Sae:
    return replace(load_sae(sae_folder()), activation=ACTIVATIONS[request.param])


def test_columns_alone_are_those_of_the_whole_encoding(any_sae: Sae) -> None:
    x = torch.randn(200, D_MODEL, generator=torch.Generator().manual_seed(1))
    for indices in ([7, 0, 39, 7], [7], list(range(40))):
        assert_columns_equal(any_sae, x, indices)


def assert_columns_equal(any_sae: Sae, x: torch.Tensor, indices: list[int]) -> None:
    want = any_sae.encode(x)[:, indices]
    assert 0 < int((want > 0).sum()) < want.numel()
    torch.testing.assert_close(any_sae.encode_columns(x, indices), want, rtol=0, atol=1e-5)


def test_a_feature_that_fires_nowhere_is_zero_everywhere(sae_folder: SaeFolder) -> None:
    sae = load_sae(sae_folder())
    silent = replace(sae, b_enc=sae.b_enc.index_fill(0, torch.tensor([3]), -1e6))
    x = torch.randn(20, D_MODEL, generator=torch.Generator().manual_seed(1))
    assert torch.equal(silent.encode_columns(x, [3]), torch.zeros(20, 1))
    assert silent.encode_columns(x[:0], [3]).shape == (0, 1)


def test_of_equal_pre_activations_the_same_are_kept_as_in_the_whole_encoding(toy: Sae) -> None:
    tied = replace(toy, W_enc=torch.ones(2, 4), b_enc=torch.zeros(4))
    x = torch.tensor([[4.0, 3.0], [2.0, 2.0]])
    assert torch.equal(tied.encode_columns(x, range(4)), tied.encode(x))
    assert (tied.encode(x) > 0).sum(dim=1).tolist() == [1, 1]


def test_encoding_and_decoding_are_differentiable(any_sae: Sae) -> None:
    """Where no feature is at its threshold, the gradient is that of central differences."""
    sae = any_sae.to("cpu", torch.float64)
    x = torch.randn(6, D_MODEL, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
    weights = _seeded(D_MODEL).double()

    def rebuilt(x: torch.Tensor) -> torch.Tensor:
        return (sae.decode(sae.encode(x)) @ weights).sum() + sae.encode_columns(x, [3, 5]).sum()

    assert torch.autograd.gradcheck(rebuilt, (x,), eps=1e-7, atol=1e-4)
    assert torch.autograd.gradcheck(lambda x: sae.encode_top(x, 9)[0], (x,), eps=1e-7, atol=1e-4)
