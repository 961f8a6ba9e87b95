"""What a worker's laboratory does about SAEs: those that do not fit are kept out, a damaged one fails its job alone."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from services.catalogue.catalogue import FACTS, open_catalogue, sae_folder
from services.catalogue.operator import CatalogueError, SaeEntry, file_sha256
from services.contracts.errors import ErrorCode
from services.contracts.features import FeaturesResult
from services.engine.ticket import JobTicket
from services.jobs.cache import fingerprint
from services.jobs.memory import MemoryJobStore
from services.jobs.policy import JobPolicy
from services.jobs.record import Claim, Size
from services.saes.bundle import save_sae
from services.saes.config import CONFIG_FILE, EXTRAS_FILE, WEIGHTS_FILE
from services.saes.errors import InvalidBundle
from services.saes.prepare import prepare_sae
from services.saes.sae import Relu, Sae, TopK
from tests.prepared import prepare_family
from tests.services.jobs.samples import new_job
from worker.laboratory import Laboratory
from worker.settings import WorkerSettings


def prepare(root: Path, sae_id: str, *, layer: int = 1, d_model: int = 32, **changes: Any) -> None:
    """A random SAE on the tiny Llama, in the store."""
    generator = torch.Generator().manual_seed(0)
    W_enc = torch.randn(d_model, 64, generator=generator)
    fields: dict[str, Any] = {
        "W_enc": W_enc,
        "b_enc": torch.zeros(64),
        "W_dec": W_enc.T.contiguous(),
        "b_dec": torch.zeros(d_model),
        "activation": TopK(4),
        "apply_b_dec_to_input": True,
        "hook_name": f"blocks.{layer}.hook_resid_post",
    }
    made = Sae(**{**fields, **changes})
    save_sae(made, root / sae_id, model_name="tiny", context=16)
    sha256 = file_sha256(root / sae_id / WEIGHTS_FILE)
    prepare_sae(SaeEntry(id=sae_id, model="tiny-llama", path=sae_id, sha256=sha256), root, root / "home")


TRANSCODER: dict[str, Any] = {
    "activation": Relu(),
    "apply_b_dec_to_input": False,
    "hook_name": "blocks.1.mlp.hook_in",
    "hook_name_out": "blocks.1.hook_mlp_out",
    "W_skip": torch.eye(32),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("operator")
    prepare_family("llama", root, root / "home")
    prepare(root, "sound")
    prepare(root, "damaged")
    prepare(root, "heads", d_model=48, hook_name="blocks.1.attn.hook_z")
    prepare(root, "transcoder", **TRANSCODER)
    return root


@pytest.fixture
def laboratory(root: Path) -> Iterator[Laboratory]:
    laboratory = Laboratory(
        WorkerSettings(home=root / "home", threads=1), open_catalogue(root / "home"), lambda _: None
    )
    yield laboratory
    laboratory.close()


def claim(sae_id: str) -> Claim:
    store = MemoryJobStore(JobPolicy())
    store.create(new_job(model="tiny-llama", sae=sae_id, promoted_logits=0))
    claimed = store.claim("default", "worker", tuple(Size))
    assert claimed is not None
    return claimed


def test_an_sae_damaged_after_it_was_prepared_fails_its_job_and_the_next_one_succeeds(
    root: Path, laboratory: Laboratory
) -> None:
    path = sae_folder(root / "home", "damaged") / WEIGHTS_FILE
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InvalidBundle, match="has sha256") as refused:
        laboratory.run(claim("damaged"), JobTicket("1", "ada"))
    assert refused.value.code is ErrorCode.SAE_UNAVAILABLE
    path.unlink()
    with pytest.raises(InvalidBundle, match="cannot be read"):
        laboratory.run(claim("damaged"), JobTicket("2", "ada"))
    assert isinstance(laboratory.run(claim("sound"), JobTicket("3", "ada")), FeaturesResult)


@pytest.fixture
def served(root: Path) -> Iterator[Callable[[], Laboratory]]:
    """Starts laboratories that read the store as it is by then."""
    with ExitStack() as stack:

        def start() -> Laboratory:
            settings = WorkerSettings(home=root / "home", threads=1)
            started = Laboratory(settings, open_catalogue(root / "home"), lambda _: None)
            stack.callback(started.close)
            return started

        yield start


@pytest.mark.parametrize(
    "change",
    [{"k": 3}, {"apply_b_dec_to_input": False}, {"metadata": {"lensd": {"norm_threshold": 1.0}}}, {"d_in": {}}],
)
def test_a_config_changed_after_it_was_prepared_fails_its_job_and_the_next_one_succeeds(
    root: Path, served: Callable[[], Laboratory], change: dict[str, Any]
) -> None:
    prepare(root, "changed")
    laboratory, path = served(), sae_folder(root / "home", "changed") / CONFIG_FILE
    config = json.loads(path.read_text())
    metadata = config["metadata"] | change.get("metadata", {})
    path.write_text(json.dumps(config | change | {"metadata": metadata}))
    with pytest.raises(InvalidBundle, match=r"changed/cfg.json has sha256") as refused:
        laboratory.run(claim("changed"), JobTicket("1", "ada"))
    assert refused.value.code is ErrorCode.SAE_UNAVAILABLE
    assert isinstance(laboratory.run(claim("sound"), JobTicket("2", "ada")), FeaturesResult)


def test_a_mean_activation_that_came_after_the_preparing_fails_its_job(
    root: Path, served: Callable[[], Laboratory]
) -> None:
    prepare(root, "extended")
    save_file({"mean_activation": torch.ones(32)}, sae_folder(root / "home", "extended") / EXTRAS_FILE)
    with pytest.raises(InvalidBundle, match=r"lensd.safetensors was not there when extended was prepared"):
        served().run(claim("extended"), JobTicket("1", "ada"))


def test_a_result_names_the_config_that_it_was_computed_with(root: Path, laboratory: Laboratory) -> None:
    result = laboratory.run(claim("sound"), JobTicket("1", "ada"))
    sae, files = result.provenance.sae, sae_folder(root / "home", "sound")
    assert sae is not None
    assert (sae.sha256, sae.config_sha256) == (file_sha256(files / WEIGHTS_FILE), file_sha256(files / CONFIG_FILE))


def test_an_sae_prepared_before_configs_were_pinned_is_refused_with_what_to_do(
    root: Path, served: Callable[[], Laboratory]
) -> None:
    prepare(root, "older")
    path = sae_folder(root / "home", "older") / FACTS
    facts = json.loads(path.read_text())
    del facts["config_sha256"]
    path.write_text(json.dumps(facts))
    laboratory = served()
    with pytest.raises(InvalidBundle, match=r"run `lensd-worker prepare older`") as refused:
        laboratory.run(claim("older"), JobTicket("1", "ada"))
    assert refused.value.code is ErrorCode.SAE_UNAVAILABLE
    assert isinstance(laboratory.run(claim("sound"), JobTicket("2", "ada")), FeaturesResult)
    prepare(root, "older")
    assert isinstance(served().run(claim("older"), JobTicket("3", "ada")), FeaturesResult)


def test_a_laboratory_says_what_computes_a_job(root: Path, laboratory: Laboratory) -> None:
    spec, catalogue = claim("sound").spec, open_catalogue(root / "home")
    said = laboratory.fingerprint_of(spec)
    assert said == fingerprint(laboratory.runner, catalogue.model("tiny-llama"), catalogue.sae("sound"))
    assert said != laboratory.fingerprint_of(claim("damaged").spec)


@pytest.mark.parametrize(
    ("misfit", "message"),
    [
        ({"layer": 9}, r"reads layer 9: tiny-llama has layers 0\.\."),
        ({"d_model": 33}, "reads 33 dimensions: tiny-llama has 32"),
        ({"hook_name": "blocks.1.attn.hook_z"}, "reads 32 dimensions: tiny-llama has 48"),
        ({**TRANSCODER, "hook_name_out": "blocks.9.hook_mlp_out"}, r"writes layer 9: tiny-llama has layers 0\.\."),
        (
            {**TRANSCODER, "W_skip": None, "W_dec": torch.ones(64, 33), "b_dec": torch.ones(33)},
            "writes 33 dimensions: tiny-llama has 32",
        ),
    ],
)
def test_an_sae_that_does_not_fit_the_model_is_not_prepared(root: Path, misfit: dict[str, Any], message: str) -> None:
    with pytest.raises(CatalogueError, match=message):
        prepare(root, "misfit", **misfit)
    assert not sae_folder(root / "home", "misfit").exists()


@pytest.mark.parametrize("sae_id", ["heads", "transcoder"])
def test_saes_of_heads_and_transcoders_are_loaded_and_run(laboratory: Laboratory, sae_id: str) -> None:
    result = laboratory.run(claim(sae_id), JobTicket("1", "ada"))
    assert isinstance(result, FeaturesResult)
    assert any(prompt.top for prompt in result.prompts)
    assert all(prompt.reconstruction for prompt in result.prompts)


def test_a_transcoder_damaged_after_it_was_prepared_fails_its_job_and_the_next_one_succeeds(
    root: Path, served: Callable[[], Laboratory]
) -> None:
    prepare(root, "spoilt", **TRANSCODER)
    laboratory = served()
    path = sae_folder(root / "home", "spoilt") / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InvalidBundle, match="truncated") as refused:
        laboratory.run(claim("spoilt"), JobTicket("1", "ada"))
    assert refused.value.code is ErrorCode.SAE_UNAVAILABLE
    assert isinstance(laboratory.run(claim("transcoder"), JobTicket("2", "ada")), FeaturesResult)
