"""`lensd-worker prepare`: what it leaves alone, what it brings up to date, and how it says no."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from services.catalogue.catalogue import FACTS, open_catalogue
from services.catalogue.operator import file_sha256, read_operator_catalogue
from services.saes.bundle import save_sae
from services.saes.config import CONFIG_FILE, WEIGHTS_FILE
from services.saes.sae import Relu, Sae
from worker.cli import main

Prepare = Callable[[], None]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An operator's folder with an SAE in it; its model is never prepared."""
    sae = Sae(
        W_enc=torch.ones(4, 8),
        b_enc=torch.zeros(8),
        W_dec=torch.ones(8, 4),
        b_dec=torch.zeros(4),
        activation=Relu(),
        apply_b_dec_to_input=True,
        hook_name="blocks.1.hook_resid_post",
    )
    save_sae(sae, tmp_path / "sae", model_name="tiny", context=16)
    write_catalogue(tmp_path)
    return tmp_path


def write_catalogue(root: Path) -> None:
    sha256 = file_sha256(root / "sae" / WEIGHTS_FILE)
    (root / "catalogue.toml").write_text(
        f"""
        [[models]]
        id = "m"
        name = "m"
        revision = "1"
        source = {{ type = "folder", path = "m", sha256 = "{"0" * 64}" }}

        [[saes]]
        id = "tiny"
        model = "m"
        path = "sae"
        sha256 = "{sha256}"
        """
    )


@pytest.fixture
def prepare(root: Path, monkeypatch: pytest.MonkeyPatch) -> Prepare:
    monkeypatch.setenv("LENSD_HOME", str(root / "home"))
    monkeypatch.setenv("LENSD_CATALOGUE", str(root / "catalogue.toml"))
    return lambda: main(["prepare", "tiny"])


def as_an_older_lensd_left_it(root: Path) -> None:
    """Before cfg.json was pinned: no such fact, and the mark of a store of then."""
    stored = root / "home" / "saes" / "tiny"
    facts: dict[str, Any] = json.loads((stored / FACTS).read_text())
    del facts["config_sha256"]
    (stored / FACTS).write_text(json.dumps(facts))
    catalogue, _ = read_operator_catalogue(root / "catalogue.toml")
    entry = catalogue.saes[0].model_dump_json(exclude={"config_sha256"})
    (stored / "prepared").write_text(hashlib.sha256(f"2 {entry}".encode()).hexdigest(), encoding="ascii")


def test_a_store_that_an_older_lensd_prepared_is_brought_up_to_date(
    root: Path, prepare: Prepare, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare()
    as_an_older_lensd_left_it(root)
    assert open_catalogue(root / "home").sae("tiny").config_sha256 is None
    capsys.readouterr()
    prepare()
    assert capsys.readouterr().out == "preparing the SAE tiny (once)\n"
    assert open_catalogue(root / "home").sae("tiny").config_sha256 == file_sha256(root / "sae" / CONFIG_FILE)
    prepare()
    assert capsys.readouterr().out == "", "what is up to date is left"


DEEP = b"[" * 100_000


def header(content: bytes) -> bytes:
    return len(content).to_bytes(8, "little") + content


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        pytest.param(WEIGHTS_FILE, header(DEEP), "no valid safetensors header", id="a header too deep"),
        pytest.param(
            WEIGHTS_FILE,
            header(b'{"W_enc": {"dtype": "F32", "shape": [Infinity], "data_offsets": [0, 1]}}'),
            "no valid safetensors header: W_enc.shape.0",
            id="an infinite shape",
        ),
        pytest.param(
            WEIGHTS_FILE,
            header(b'{"W_enc": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}'),
            "no valid safetensors header: W_enc.dtype",
            id="a list of dtypes",
        ),
        pytest.param(CONFIG_FILE, DEEP, "recursion limit exceeded", id="a config too deep"),
        pytest.param(CONFIG_FILE, b" " * 1_000_001, "has over 1000000 bytes", id="a config too large"),
        pytest.param("card.json", DEEP, "recursion limit exceeded", id="a card too deep"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line_that_names_it(
    root: Path, prepare: Prepare, file: str, content: bytes, message: str
) -> None:
    (root / "sae" / file).write_bytes(content)
    write_catalogue(root)
    with pytest.raises(SystemExit) as ended:
        prepare()
    said = str(ended.value.code)
    assert said.startswith("lensd-worker: tiny: ")
    assert file in said
    assert message in said
    assert "\n" not in said
    assert not (root / "home" / "saes" / "tiny").exists()
