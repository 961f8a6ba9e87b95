"""The way to the store: TLS, certificates, and the user of an access control list.

All other tests of the adapters run as that user too: see `redis_url`.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from pydantic import SecretStr, ValidationError
from redis.exceptions import NoPermissionError

from services.adapters.celery_doorbell import CeleryDoorbell
from services.adapters.redis_client import make_async_client, make_client, store_errors
from services.contracts.errors import Unavailable
from services.store_settings import StoreSettings
from tests.services.adapters.valkey import ACL_RULES, Server, restricted
from tests.tls import Authority, make_authority, tls_in_front_of

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made by openssl")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def tls_url(shared_server: Server, authority: Authority) -> Iterator[str]:
    url = urlsplit(restricted(shared_server.url, ACL_RULES))
    assert url.port is not None
    with tls_in_front_of(url.port, authority) as port:
        yield f"rediss://{url.username}:{url.password}@127.0.0.1:{port}/0"


def settings(url: str, **files: Path) -> StoreSettings:
    return StoreSettings(redis_url=SecretStr(url), **files)  # type: ignore[arg-type]


@pytest.fixture
def good(tls_url: str, authority: Authority) -> str:
    client = authority.client
    files = {"redis_ca_file": authority.ca, "redis_cert_file": client.cert, "redis_key_file": client.key}
    return settings(tls_url, **files).store_url


@needs_openssl
def test_the_gateways_and_the_workers_clients_reach_the_store_over_tls(good: str) -> None:
    for patient in (True, False):
        with make_client(good, patient=patient) as client:
            assert client.ping()


@needs_openssl
@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_events_reach_the_store_over_tls(good: str) -> None:
    async with make_async_client(good) as client:
        assert await client.ping()


@needs_openssl
def test_celery_reaches_the_store_over_tls(good: str) -> None:
    doorbell = CeleryDoorbell(good)
    doorbell.ring("tls")
    assert doorbell.waiting("tls") == 1


@needs_openssl
def test_a_store_of_an_unknown_authority_is_not_talked_to(tls_url: str, authority: Authority, tmp_path: Path) -> None:
    stranger = make_authority(tmp_path)
    for files in ({"redis_ca_file": stranger.ca}, {}):
        url = settings(
            tls_url, redis_cert_file=authority.client.cert, redis_key_file=authority.client.key, **files
        ).store_url
        with make_client(url, patient=False) as client, pytest.raises(Unavailable), store_errors():
            client.ping()
        assert CeleryDoorbell(url).waiting("tls") is None


@needs_openssl
def test_a_store_that_asks_for_a_certificate_gets_it_or_refuses(tls_url: str, authority: Authority) -> None:
    url = settings(tls_url, redis_ca_file=authority.ca).store_url
    with make_client(url, patient=False) as client, pytest.raises(Unavailable), store_errors():
        client.ping()


@pytest.mark.parametrize(
    "command", [("FLUSHALL",), ("KEYS", "*"), ("CONFIG", "GET", "*"), ("GET", "others"), ("ACL", "LIST")]
)
def test_the_documented_user_may_do_no_more_than_it_needs(shared_server: Server, command: tuple[str, ...]) -> None:
    url = restricted(shared_server.url, ACL_RULES)
    with make_client(url, patient=False) as client, pytest.raises(NoPermissionError):
        client.execute_command(*command)


def test_files_for_tls_without_tls_are_refused(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.touch()
    with pytest.raises(ValidationError, match="rediss://"):
        settings("redis://127.0.0.1:6379/0", redis_ca_file=ca)


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="redis_ca_file"):
        settings("rediss://127.0.0.1:6379/0", redis_ca_file=tmp_path / "missing.pem")


def test_an_address_without_tls_stays_as_it_is() -> None:
    assert settings("redis://lensd:pa%2Fss@127.0.0.1:6379/3").store_url == "redis://lensd:pa%2Fss@127.0.0.1:6379/3"
