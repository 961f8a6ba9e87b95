"""What tests of several rooms share: the prepared store with the real model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from services.catalogue.catalogue import Catalogue, model_folder, open_catalogue

PROJECT = Path(__file__).resolve().parents[1]
MODEL = "smollm2-135m"
SAE = "smollm2-135m-l15-resid-post"


@pytest.fixture(scope="session")
def home() -> Path:
    """A data directory in which the catalogue's models and SAEs are prepared: the developer's own, never changed."""
    home = Path(os.environ.get("LENSD_HOME", PROJECT / ".lensd")).resolve()
    environment = {**os.environ, "LENSD_HOME": str(home), "LENSD_CATALOGUE": str(PROJECT / "deploy/catalogue.toml")}
    subprocess.run([sys.executable, "-m", "worker.cli", "prepare"], check=True, cwd=PROJECT, env=environment)
    return home


@pytest.fixture(scope="session")
def catalogue(home: Path) -> Catalogue:
    return open_catalogue(home)


@pytest.fixture(scope="session")
def smollm2_folder(home: Path) -> Path:
    return model_folder(home, MODEL)
