"""What computes on a body leaves the event loop free: others are answered meanwhile."""

import asyncio
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

import httpx
import pytest

from services.catalogue.catalogue import Catalogue
from services.catalogue.tokenizer import Tokenizer
from tests.api.catalogue import MODEL
from tests.api.conftest import Stand
from tests.api.specs import PATCHING
from tests.documents import PROJECT
from tests.processes import eventually

pytestmark = pytest.mark.anyio

KEY = {"Idempotency-Key": "run-7"}
LINES = {"Content-Type": "application/jsonl"}
PATIENCE_S = 10.0

Called = set[tuple[str, str]]
"""Files and functions."""


@dataclass(frozen=True)
class Held(Catalogue):
    """Hands a tokenizer out only once it is told to."""

    reached: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)

    def tokenizer(self, model_id: str) -> Tokenizer:
        self.reached.set()
        assert self.released.wait(PATIENCE_S), "nobody was answered while this job was read"
        return super().tokenizer(model_id)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [("/v1/jobs", PATCHING, 202), (f"/v1/models/{MODEL}/tokenize", {"prompt": "the shops"}, 200)],
)
async def test_others_are_answered_while_a_text_is_tokenised(
    stand: Stand, path: str, body: object, status: int
) -> None:
    catalogue = stand.services.catalogue
    held = Held(catalogue.home, catalogue.models, catalogue.saes)
    async with stand.client(stand.key("alice"), stand.app_with(catalogue=held)) as client:
        slow = asyncio.create_task(client.post(path, json=body))
        assert await asyncio.to_thread(eventually, held.reached.is_set, PATIENCE_S)
        assert (await client.get("/livez")).status_code == 200
        assert (await client.get("/v1/models")).status_code == 200
        assert not slow.done()
        held.released.set()
        assert (await slow).status_code == status


async def test_neither_reading_a_job_nor_telling_it_from_another_is_done_on_the_loop(
    stand: Stand, client: httpx.AsyncClient
) -> None:
    with calls_on_this_thread() as called:
        answers = [await client.post("/v1/jobs", json=PATCHING, headers=KEY) for _ in range(2)]
    assert answers[1].headers["idempotency-replayed"] == "true", "so the requests were compared"
    assert ("api/routes/jobs.py", "submit_job") in called, "so the loop ran on this thread"
    computing = {("api/bodies.py", "parse"), ("api/submission.py", "admitted"), ("api/idempotency.py", "idempotency")}
    assert called & computing == set()
    assert [file for file, _ in called if file.startswith("services/catalogue/")] == []


async def test_an_upload_is_neither_counted_nor_hashed_on_the_loop(client: httpx.AsyncClient) -> None:
    upload = json.dumps({"custom_id": "one", "job": PATCHING}).encode()
    with calls_on_this_thread() as called:
        answers = [await client.post("/v1/batches", content=upload, headers=LINES | KEY) for _ in range(2)]
    assert answers[1].headers["idempotency-replayed"] == "true"
    assert ("api/routes/batches.py", "submit_batch") in called
    computing = {("services/batches/upload.py", "count_lines"), ("api/idempotency.py", "upload_idempotency")}
    assert called & computing == set()


@contextmanager
def calls_on_this_thread() -> Iterator[Called]:
    """Which of lensd's functions the thread that runs the loop enters meanwhile."""
    called: Called = set()
    root = str(PROJECT)

    def note(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(root):
            called.add((code.co_filename.removeprefix(root).lstrip("/"), code.co_name))

    sys.setprofile(note)
    try:
        yield called
    finally:
        sys.setprofile(None)
