"""Probing tells the truth about sites, also where a hook fires and does nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from services.catalogue.catalogue import model_folder
from services.contracts.errors import ErrorCode, JobFailed
from services.contracts.model import ModelFacts
from services.contracts.site import SiteName
from services.models.hooks import hook_points
from services.models.load import LoadedModel, load_model
from services.models.probe import mlp_width, probe_sites
from tests.prepared import prepare_family


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ModelFacts]:
    home = tmp_path_factory.mktemp("home")
    facts = prepare_family("llama", tmp_path_factory.mktemp("sources"), home)
    return model_folder(home, facts.id), facts


@pytest.fixture(scope="module")
def model(prepared: tuple[Path, ModelFacts]) -> LoadedModel:
    folder, facts = prepared
    return load_model(folder, facts, device=torch.device("cpu"), dtype=torch.float32)


@contextmanager
def deaf(model: LoadedModel, site: SiteName, layer: int) -> Iterator[None]:
    """One layer's hook point that shows its activation to hooks and drops what they return."""
    point = hook_points(model.bridge)[site, layer]

    def forward(activation: Any) -> Any:
        return activation

    def restore(_module: Any, given: tuple[Any, ...], _output: Any) -> Any:
        return given[0]

    handle = point.register_forward_hook(restore)
    add_hook = point.add_hook
    vars(point)["add_hook"] = lambda hook, **options: add_hook(hook, prepend=True, **options)
    try:
        yield
    finally:
        del vars(point)["add_hook"]
        handle.remove()


def test_every_site_of_a_llama_can_be_read_and_written(model: LoadedModel) -> None:
    facts = probe_sites(model)
    assert tuple(site.name for site in facts) == tuple(SiteName)
    assert all(site.readable and site.writable and site.reason is None for site in facts)


def test_probing_leaves_no_hook_and_finds_the_same_again(model: LoadedModel) -> None:
    assert probe_sites(model) == probe_sites(model)
    assert not any(point.fwd_hooks for point in model.bridge.hook_dict.values())


@pytest.mark.parametrize("layer", [0, 2])
def test_a_hook_that_ignores_writes_in_one_layer_alone_is_found(model: LoadedModel, layer: int) -> None:
    with deaf(model, SiteName.MLP_POST, layer):
        facts = {site.name: site for site in probe_sites(model)}
    assert facts[SiteName.MLP_POST].readable
    assert not facts[SiteName.MLP_POST].writable
    assert "mlp_post" in str(facts[SiteName.MLP_POST].reason)
    assert all(site.writable for site in facts.values() if site.name is not SiteName.MLP_POST)


def test_the_width_of_an_mlp_is_what_its_activations_show(model: LoadedModel) -> None:
    assert mlp_width(model) == 48


def test_weights_that_are_not_the_prepared_ones_are_refused(prepared: tuple[Path, ModelFacts], tmp_path: Path) -> None:
    folder, facts = prepared
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = bytearray((tmp_path / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(weights)
    with pytest.raises(JobFailed, match="prepare the model again") as changed:
        load_model(tmp_path, facts, device=torch.device("cpu"), dtype=torch.float32)
    assert changed.value.code is ErrorCode.MODEL_UNAVAILABLE
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(JobFailed, match="missing from the model store"):
        load_model(tmp_path, facts, device=torch.device("cpu"), dtype=torch.float32)


def test_a_loaded_model_is_frozen_and_in_the_dtype_that_was_asked_for(prepared: tuple[Path, ModelFacts]) -> None:
    folder, facts = prepared
    model = load_model(folder, facts, device=torch.device("cpu"), dtype=torch.bfloat16)
    parameters = list(model.bridge.original_model.parameters())
    assert {parameter.dtype for parameter in parameters if parameter.ndim > 1} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in parameters)
    assert not model.bridge.original_model.training
