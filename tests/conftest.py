"""What tests of several rooms share: the prepared store with the real model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from services.catalogue.catalogue import Catalogue, model_folder, open_catalogue

PROJECT = Path(__file__).resolve().parents[1]
STACK = "tests/stack"
MODEL = "smollm2-135m"
SAE = "smollm2-135m-l15-resid-post"


class StackBesideFiles(LoadScopeScheduling):
    """Of several test processes one takes all tests of the stack, which mostly wait; the others go file by file."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return STACK if file.startswith(f"{STACK}/") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> StackBesideFiles:
    config.option.loadscopereorder = False
    return StackBesideFiles(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest."""
    items.sort(key=lambda item: not item.nodeid.startswith(f"{STACK}/"))


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
