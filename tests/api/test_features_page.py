"""Every request that the page of features shows is sent, in its order, and answered from the index that ships."""

from pathlib import Path

import pytest

from services.catalogue.catalogue import open_catalogue, sae_folder
from services.catalogue.feature_index import open_index
from services.catalogue.feature_indexes import INDEX_FILE, FeatureIndexes
from tests.api.catalogue import SAE, write_catalogue
from tests.api.conftest import Stand
from tests.documents import FEATURES, PROJECT, http_requests

SHOWN_SAE = "smollm2-135m-l15-resid-post"
SHIPPED = PROJECT / "assets/saes" / SHOWN_SAE / INDEX_FILE

pytestmark = pytest.mark.anyio


async def test_every_request_on_the_page_is_answered(stand: Stand, tmp_path: Path) -> None:
    write_catalogue(tmp_path)
    (sae_folder(tmp_path, SAE) / INDEX_FILE).symlink_to(SHIPPED)
    catalogue = open_catalogue(tmp_path)
    app = stand.app_with(catalogue=catalogue, features=FeatureIndexes(catalogue, open_index))
    requests = http_requests(FEATURES)
    assert requests
    async with stand.client(stand.key("alice"), app) as client:
        for shown in requests:
            path = shown.path.replace(SHOWN_SAE, SAE)
            response = await client.request(shown.method, path, headers=shown.headers, content=shown.body)
            assert response.is_success, (shown.name, response.text)
            if shown.method == "GET" and "text=church" in shown.path:
                assert [feature for feature in response.json()["features"] if feature["density"] > 0]
