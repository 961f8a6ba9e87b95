"""Every request that the page of features shows is sent, in its order."""

import httpx
import pytest

from tests.api.catalogue import SAE
from tests.documents import FEATURES, http_requests

SHOWN_SAE = "smollm2-135m-l15-resid-post"

pytestmark = pytest.mark.anyio


async def test_every_request_on_the_page_is_answered(client: httpx.AsyncClient) -> None:
    requests = http_requests(FEATURES)
    assert requests
    for shown in requests:
        path = shown.path.replace(SHOWN_SAE, SAE)
        response = await client.request(shown.method, path, headers=shown.headers, content=shown.body)
        assert response.is_success, (shown.name, response.text)
