"""Those who fail to say who they are, and too often."""

import pytest

from api import strangers
from api.strangers import Strangers
from services.contracts.errors import Limited
from services.tenants.limits import Rate
from tests.api.conftest import Stand

pytestmark = pytest.mark.anyio

RATE = Rate(per_second=1.0, burst=3)
WRONG = "lensd_aaaaaaaaaaaa_" + "A" * 43


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


async def test_an_address_that_fails_too_often_is_told_to_wait_and_its_tenants_go_on(stand: Stand) -> None:
    app = stand.app_with(strangers=Strangers(RATE, Clock()))
    alice, newcomer = stand.key("alice"), stand.key("bob")
    async with stand.client(alice, app) as client, stand.client(None, app) as anyone, stand.client(WRONG, app) as guess:
        assert (await client.get("/v1/models")).status_code == 200
        answers = [await one.get("/v1/models") for one in (anyone, guess, anyone, guess, anyone)]
        assert (await client.get("/v1/models")).status_code == 200
    assert [answer.status_code for answer in answers] == [401, 401, 401, 429, 429]
    assert answers[-1].json()["code"] == "rate_limited"
    assert answers[-1].headers["retry-after"] == "1"
    async with stand.client(newcomer, app) as client:
        assert (await client.get("/v1/models")).status_code == 429, "nobody knows it yet, and the store is not asked"


def test_an_allowance_comes_back_with_time() -> None:
    clock = Clock()
    known = Strangers(RATE, clock)
    for _ in range(3):
        known.check("192.0.2.1", "")
        known.failed("192.0.2.1")
    with pytest.raises(Limited):
        known.check("192.0.2.1", "")
    known.check("192.0.2.2", "")
    clock.now += 1
    known.check("192.0.2.1", "")


def test_one_subscribers_addresses_are_counted_together() -> None:
    known = Strangers(RATE, Clock())
    for last in range(3):
        known.failed(f"2001:db8::{last:x}")
    with pytest.raises(Limited):
        known.check("2001:db8::ffff", "")
    known.check("2001:db8:0:1::1", "")


def test_only_the_latest_addresses_are_remembered() -> None:
    known = Strangers(Rate(per_second=0.001, burst=1), Clock())
    known.failed("unix")
    with pytest.raises(Limited):
        known.check("unix", "")
    for number in range(strangers.REMEMBERED):
        known.failed(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    known.check("unix", "")
