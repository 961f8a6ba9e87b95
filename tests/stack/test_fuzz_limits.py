"""What the drill `tests.chaos.fuzz` never meets, with its ample keys and its whole stack: answers 429, and 503.

The checks are the drill's: every answer is a documented one, with the headers that the document requires of it.
"""

import time
from pathlib import Path

import httpx

from tests.chaos.fuzz import Effort, Round, make_keys, what_is_served
from tests.chaos.fuzz_tally import Tally, report
from tests.stack.gateways import deployment
from tests.stack.harness import RunningStack

FEW = Effort(examples=1, boundaries_of_bodies=False)
REQUESTS = 60
SECONDS = 60.0


def test_a_key_over_its_rate_gets_documented_answers(stack: RunningStack, client: httpx.Client) -> None:
    tally, served = Tally(), what_is_served(client)
    keys = make_keys(client, burst=1, requests_per_second=0.1)
    short = Round(stack.base_url, keys, served, seed=1, effort=FEW, at_most=REQUESTS)
    short.run(tally, time.monotonic() + SECONDS)
    assert not tally.failures, report(tally)
    assert tally.checks["response_headers_conformance"] >= tally.by_status["429"] >= REQUESTS // 2, report(tally)


def test_without_the_store_every_answer_is_a_documented_one(tmp_path: Path) -> None:
    tally = Tally()
    with deployment(tmp_path) as deployed, deployed.client(deployed.gateway()) as client:
        keys, served = make_keys(client), what_is_served(client)
        deployed.server.stop()
        short = Round(str(client.base_url), keys, served, seed=1, effort=FEW, away=True, at_most=REQUESTS)
        short.run(tally, time.monotonic() + SECONDS)
    assert not tally.failures, report(tally)
    assert tally.checks["response_headers_conformance"] >= tally.by_status["503"] >= REQUESTS // 2, report(tally)
