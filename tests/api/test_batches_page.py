"""Every request that the page of batches shows is sent, in its order, while the jobs run."""

import re

import pytest

from tests.api.catalogue import MODEL, SAE
from tests.api.conftest import Stand
from tests.api.test_batches import Keeping
from tests.documents import BATCHES, http_requests

pytestmark = pytest.mark.anyio

SHOWN_ID = "batch_abcdefghijklmnopqrstuvwxyz"


async def test_every_request_on_the_page_is_answered(stand: Stand) -> None:
    keeping, batch_id = Keeping(stand), SHOWN_ID
    requests = http_requests(BATCHES)
    answered = []
    async with stand.client(stand.key("alice")) as client:
        for shown in requests:
            path = shown.path.replace(SHOWN_ID, batch_id)
            body = shown.body.replace("smollm2-135m-l15-resid-post", SAE).replace("smollm2-135m", MODEL)
            response = await client.request(shown.method, path, headers=shown.headers, content=body)
            assert response.is_success, (shown.name, response.text)
            answered.append(response)
            if shown.method == "POST" and "batch_" not in shown.path:
                batch_id = response.json()["id"]
                keeping.keep()
                keeping.run(2)
    posted, followed, results, rest, cancelled, _deleted = answered
    assert (posted.status_code, followed.json()["status"], cancelled.json()["status"]) == (202, "ended", "ended")
    custom_ids = [re.findall(r'"custom_id":"(\w+)"', response.text) for response in (results, rest)]
    assert custom_ids == [["eiffel", "louvre"], ["louvre"]]
