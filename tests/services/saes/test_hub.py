"""SAEs by SAELens' release and id, from a made-up Hugging Face cache laid out as huggingface_hub does it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from services.catalogue.operator import CatalogueError, SaeEntry, SaeLensEntry, file_sha256, read_operator_catalogue
from services.saes.bundle import load_sae
from services.saes.config import CONFIG_FILE, WEIGHTS_FILE
from services.saes.hub import HubFolder, locate, releases
from services.saes.prepare import prepare_sae
from tests.services.saes.conftest import D_MODEL, SaeFolder
from tests.services.saes.hub_cache import REVISION, keep

RELEASE, SAE_ID = "gemma-2-2b-res-matryoshka-dc", "blocks.0.hook_resid_post"
REPOSITORY = "chanind/gemma-2-2b-batch-topk-matryoshka-saes-w-32k-l0-40"
FOLDER = "standard/blocks.0.hook_resid_post"


def cached(root: Path, source: Path, repository: str = REPOSITORY, folder: str = FOLDER) -> Path:
    return keep(root, {f"{folder}/{path.name}": path.read_bytes() for path in source.iterdir()}, repository) / folder


def entry(sha256: str, **changes: Any) -> SaeLensEntry:
    fields = {
        "id": "tiny",
        "model": "m",
        "release": RELEASE,
        "sae_id": SAE_ID,
        "revision": REVISION,
        "cache": "hub",
        "sha256": sha256,
    }
    return SaeLensEntry(**{**fields, **changes})


@pytest.fixture
def source(sae_folder: SaeFolder) -> Path:
    return sae_folder(architecture="jumprelu")


def test_a_release_and_an_id_are_found_in_the_cache_and_copied_into_the_store(source: Path, tmp_path: Path) -> None:
    cached(tmp_path, source)
    sha256 = file_sha256(source / WEIGHTS_FILE)
    facts = prepare_sae(entry(sha256), tmp_path, tmp_path / "home")
    stored = tmp_path / "home" / "saes" / "tiny"
    assert (facts.sha256, facts.architecture, facts.layer) == (sha256, "jumprelu", 1)
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        assert not (stored / name).is_symlink()
    shutil.rmtree(tmp_path / "hub")
    x = torch.randn(9, D_MODEL)
    assert torch.equal(load_sae(stored).encode(x), load_sae(source).encode(x))


def test_a_repository_is_its_own_release_and_needs_no_saelens(source: Path, tmp_path: Path) -> None:
    cached(tmp_path, source, "someone/saes", "layer_1")
    named = entry(file_sha256(source / WEIGHTS_FILE), release="someone/saes", sae_id="layer_1")
    assert locate(named, directory={}) == HubFolder("someone/saes", "layer_1", {})
    assert prepare_sae(named, tmp_path, tmp_path / "home").features == 40


def test_what_a_release_overrides_is_in_force(source: Path, tmp_path: Path) -> None:
    cached(tmp_path, source, "JoshEngels/Mistral-7B-Residual-Stream-SAEs", "mistral_7b_layer_8")
    named = entry(file_sha256(source / WEIGHTS_FILE), release="mistral-7b-res-wg", sae_id="blocks.8.hook_resid_pre")
    facts = prepare_sae(named, tmp_path, tmp_path / "home")
    assert facts.normalize_activations == "constant_norm_rescale"
    in_cache, in_store = (file_sha256(folder / CONFIG_FILE) for folder in (source, tmp_path / "home/saes/tiny"))
    assert facts.config_sha256 == in_store != in_cache, "what is pinned for the worker is what is in force"
    pinned = named.model_copy(update={"config_sha256": in_cache})
    assert prepare_sae(pinned, tmp_path, tmp_path / "home") == facts
    with pytest.raises(CatalogueError, match=r"tiny: cfg.json has sha256"):
        prepare_sae(named.model_copy(update={"config_sha256": in_store}), tmp_path, tmp_path / "home")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"release": "no-such-release"}, "SAELens knows no release 'no-such-release'; name one of its table"),
        ({"sae_id": "blocks.99.hook_resid_post"}, "has no SAE 'blocks.99.hook_resid_post'; it has blocks.0.hook_re"),
        (
            {"release": "gemma-scope-2b-pt-res", "sae_id": "layer_0/width_16k/average_l0_105"},
            "is not read: its weights are NumPy archives .* save_model to a folder is named by that folder as `path`",
        ),
        (
            {"release": "mntss-gemma-2-2b-2.5m-clt-as-per-layer", "sae_id": "layer_0"},
            "is not read: a cross-layer transcoder writes at many layers",
        ),
        ({"revision": "f" * 40}, "is not in .*: fill the cache on a machine with network"),
        ({"sae_id": "blocks.1.hook_resid_post"}, "is not in .*: fill the cache on a machine with network"),
        ({"cache": "elsewhere"}, "does not exist"),
        ({"cache": "../.."}, "leads out of"),
        ({"sha256": "0" * 64}, "has sha256"),
    ],
)
def test_what_cannot_be_taken_from_the_cache_is_refused_and_leaves_nothing(
    source: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    cached(tmp_path, source)
    with pytest.raises(CatalogueError, match=message):
        prepare_sae(entry(**{"sha256": file_sha256(source / WEIGHTS_FILE), **changes}), tmp_path, tmp_path / "home")
    assert list((tmp_path / "home" / "saes").iterdir()) == []


def test_a_release_for_a_changed_model_that_is_not_gpt_2_is_refused(source: Path, tmp_path: Path) -> None:
    """Its cfg.json has no such word: the release says so."""
    old = (
        '{"architecture": "standard", "d_in": 12, "d_sae": 40, "hook_point": "blocks.0.hook_resid_pre", '
        '"model_name": "gelu-2l"}'
    )
    (source / CONFIG_FILE).write_text(old)
    cached(tmp_path, source, "jbloom/GPT2-Small-SAEs-Reformatted", "blocks.0.hook_resid_pre")
    named = entry(file_sha256(source / WEIGHTS_FILE), release="gpt2-small-res-jb", sae_id="blocks.0.hook_resid_pre")
    with pytest.raises(CatalogueError, match="loaded with center_writing_weights"):
        prepare_sae(named, tmp_path, tmp_path / "home")


def test_pickled_weights_in_the_cache_are_never_opened(source: Path, tmp_path: Path) -> None:
    snapshot = cached(tmp_path, source)
    (snapshot / WEIGHTS_FILE).unlink()
    (snapshot / "sae_weights.pt").write_bytes(b"never read")
    with pytest.raises(CatalogueError, match=r"sae_weights.safetensors of .* nothing but safetensors"):
        prepare_sae(entry("0" * 64), tmp_path, tmp_path / "home")


def test_a_link_out_of_the_repository_is_not_followed(source: Path, tmp_path: Path) -> None:
    snapshot, secret = cached(tmp_path, source), tmp_path / "secret"
    secret.write_bytes((source / WEIGHTS_FILE).read_bytes())
    (snapshot / WEIGHTS_FILE).unlink()
    (snapshot / WEIGHTS_FILE).symlink_to(secret)
    with pytest.raises(CatalogueError, match="leads out of its repository"):
        prepare_sae(entry(file_sha256(secret)), tmp_path, tmp_path / "home")


def test_a_repository_that_is_a_link_out_of_the_cache_is_not_followed(source: Path, tmp_path: Path) -> None:
    snapshot = cached(tmp_path, source)
    repository = next(folder for folder in snapshot.parents if folder.name.startswith("models--"))
    elsewhere = repository.rename(tmp_path / "elsewhere")
    repository.symlink_to(elsewhere)
    with pytest.raises(CatalogueError, match=rf"the folder of {REPOSITORY} leads out of"):
        prepare_sae(entry(file_sha256(source / WEIGHTS_FILE)), tmp_path, tmp_path / "home")


def test_an_id_that_climbs_out_of_the_repository_is_refused(source: Path, tmp_path: Path) -> None:
    cached(tmp_path, source, "someone/saes", "layer_1")
    other = cached(tmp_path, source, "someone/else", "layer_1")
    climbing = f"../../../{other.parents[2].name}/snapshots/{REVISION}/layer_1"
    named = entry(file_sha256(source / WEIGHTS_FILE), release="someone/saes", sae_id=climbing)
    with pytest.raises(CatalogueError, match=r"is no name of a file: .* cannot contain a '..'"):
        prepare_sae(named, tmp_path, tmp_path / "home")


def catalogue(folder: Path, sha256: str, changes: str = "") -> Path:
    path = folder / "catalogue.toml"
    path.write_text(
        f"""
        [[models]]
        id = "m"
        name = "m"
        revision = "1"
        source = {{ type = "folder", path = "m", sha256 = "{sha256}" }}

        [[saes]]
        id = "tiny"
        model = "m"
        release = "{RELEASE}"
        sae_id = "{SAE_ID}"
        revision = "{REVISION}"
        cache = "hub"
        sha256 = "{sha256}"
        {changes}

        [[saes]]
        id = "beside"
        model = "m"
        path = "sae"
        sha256 = "{sha256}"
        """
    )
    return path


def test_the_operators_file_names_folders_and_releases_side_by_side(tmp_path: Path) -> None:
    read, _ = read_operator_catalogue(catalogue(tmp_path, "0" * 64))
    assert [type(sae) for sae in read.saes] == [SaeLensEntry, SaeEntry]
    with pytest.raises(CatalogueError, match=r"saes.0.saelens.extra"):
        read_operator_catalogue(catalogue(tmp_path, "0" * 64, "extra = 1"))
    path = catalogue(tmp_path, "0" * 64)
    path.write_text(path.read_text().replace(REVISION, "main"))
    with pytest.raises(CatalogueError, match=r"saes.0.saelens.revision"):
        read_operator_catalogue(path)


_PREPARE = """
import sys
from worker.cli import main
main(sys.argv[1:])
assert "sae_lens" not in sys.modules, "preparing imported SAELens"
"""


def command(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"LENSD_CATALOGUE": str(tmp_path / "catalogue.toml"), "LENSD_HOME": str(tmp_path / "home")}
    return subprocess.run(
        [sys.executable, "-c", _PREPARE, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_the_command_prepares_a_release_without_importing_saelens(source: Path, tmp_path: Path) -> None:
    cached(tmp_path, source)
    catalogue(tmp_path, file_sha256(source / WEIGHTS_FILE))
    first, second = (command(tmp_path, "prepare", "tiny") for _ in range(2))
    assert (first.returncode, first.stdout) == (0, "preparing the SAE tiny (once)\n"), first.stderr
    assert (second.returncode, second.stdout) == (0, ""), "what is there is left"
    assert (tmp_path / "home" / "saes" / "tiny" / WEIGHTS_FILE).is_file()
    indexed = command(tmp_path, "index-sae", "tiny", "--corpus", "none.jsonl")
    assert "has no folder of its own for an index: give its entry a `path`" in indexed.stderr


def test_saelens_directory_is_read_whole_without_its_code() -> None:
    assert releases()[RELEASE]["repo_id"] == REPOSITORY
