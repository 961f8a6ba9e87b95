"""One stack for all tests of this room."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.stack.harness import RunningStack, running_stack


@pytest.fixture(scope="session")
def stack(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """The whole stack, shared: leave its processes alone, and name what you make so that others do not meet it."""
    with running_stack(tmp_path_factory.mktemp("stack"), store=home, LENSD_WEBHOOK_HOSTS="127.0.0.1") as running:
        yield running


@pytest.fixture
def client(stack: RunningStack) -> Iterator[httpx.Client]:
    """An HTTP client of the shared stack, with an API key."""
    with stack.client() as opened:
        yield opened
