"""A served tiny Llama, prepared once for the tests of this room."""

from pathlib import Path

import pytest

from services.catalogue.catalogue import Catalogue, open_catalogue
from tests.prepared import prepare_family


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    home: Path = tmp_path_factory.mktemp("home")
    prepare_family("llama", tmp_path_factory.mktemp("sources"), home)
    prepare_family("gpt2", tmp_path_factory.mktemp("sources"), home)
    return open_catalogue(home)
