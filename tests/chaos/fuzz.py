"""Drill, `python -m tests.chaos.fuzz`: schemathesis over `openapi.yaml`, on real processes, with two tenants' keys.

1. start Valkey, a gateway and a worker, and make a key for each of two tenants, one of them an administrator;
2. in rounds, until there were enough requests: examples, boundary values, random data good and bad, chains of requests,
   every answer held against every check; the tenants change places from round to round;
3. say what was asked, what was answered and what failed; exit with 1 if anything did.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import schemathesis
from schemathesis.engine import events, from_schema
from schemathesis.schemas import BaseSchema

from api.openapi import describe
from benchmarks.report import write_section
from services.tenants.keys import Scope
from tests.chaos import fuzz_rules
from tests.chaos.fuzz_tally import Tally, report, section
from tests.stack.harness import running_stack

REPORT = Path(__file__).parents[2] / "benchmarks" / "CHAOS.md"
STORE = Path(os.environ.get("LENSD_HOME", ".lensd"))
TENANTS: Mapping[str, tuple[Scope, ...]] = {
    "alice": (Scope.JOBS, Scope.READ),
    "bob": (Scope.JOBS, Scope.READ, Scope.ADMIN),
}
AMPLE: Mapping[str, str] = {
    # So that 429 answers few requests and not most.
    "LENSD_REQUESTS_PER_SECOND": "100000",
    "LENSD_REQUEST_BURST": "1000000",
    "LENSD_FAILED_AUTH_BURST": "1000000",
    # So that the worker keeps up with the jobs that are accepted.
    "LENSD_MAX_JOB_TOKEN_LAYERS": "30000",
    "LENSD_THREADS": "1",
}
REFUSALS = ["400", "401", "403", "404", "405", "406", "409", "413", "415", "422", "429", "431"]


@dataclass(frozen=True)
class Effort:
    """How much a round asks."""

    examples: int
    """Random requests per operation; as many chains of requests."""
    boundaries_of_bodies: bool = True
    """Whether every boundary of every field of a body is tried: some thousands of requests, most of them jobs."""


@dataclass(frozen=True)
class Round:
    """All phases once. `keys` are the tenants' by name, the first of them the one that asks."""

    base_url: str
    keys: Mapping[str, str]
    served: Mapping[str, Sequence[str]]
    seed: int
    effort: Effort
    away: bool = False
    """Whether the store is away: 503 is then what is promised."""
    at_most: int | None = None
    """Requests of all rounds together after which this one ends."""

    def run(self, tally: Tally, give_up_at: float) -> None:
        with tempfile.TemporaryDirectory() as folder:
            stream = from_schema(self._schema(self._credentials(Path(folder)))).execute()
            for event in stream:
                if isinstance(event, events.ScenarioFinished):
                    tally.note(event)
                elif isinstance(event, events.NonFatalError):
                    tally.fail("error", event.label, str(event.value))
                elif isinstance(event, events.FatalError):
                    raise event.exception
                enough = self.at_most is not None and tally.requests >= self.at_most
                if enough or time.monotonic() > give_up_at:
                    stream.stop()

    def _checks(self) -> dict[str, Any]:
        # The check's own list lacks 413 and 431, which refuse too, and has 5xx, which does not.
        refusals = {"negative_data_rejection": {"expected-statuses": [*REFUSALS, *(["503"] if self.away else [])]}}
        return refusals | ({"not_a_server_error": {"enabled": False}} if self.away else {})

    def _credentials(self, folder: Path) -> Path:
        path = folder / "keys.json"
        path.touch(mode=0o600)
        users = [
            {"name": name, "fixedHeaders": [{"name": "Authorization", "value": f"Bearer {key}"}]}
            for name, key in self.keys.items()
        ]
        path.write_text(json.dumps({"auth": users}), encoding="utf-8")
        return path

    def _schema(self, credentials: Path) -> BaseSchema:
        settings: dict[str, Any] = {
            "base-url": self.base_url,
            "seed": self.seed,
            # CPython 3.11 builds syntax trees, as hypothesis does, in one thread at a time.
            "workers": 1,
            "request-timeout": 40.0,
            "max-stream-events": 3,
            "continue-on-failure": True,
            "cache": {"enabled": False},
            "auth": {"wfc": {"path": str(credentials), "peers": list(self.keys)}},
            "generation": {"max-examples": self.effort.examples, "no-shrink": True, "database": "none"},
            "checks": self._checks(),
        }
        if not self.effort.boundaries_of_bodies:
            without = {"coverage": {"enabled": False}}
            settings["operations"] = [{"include-method": ["POST", "PUT", "PATCH"], "phases": without}]
        document = fuzz_rules.readable(describe(), self.served)
        return schemathesis.openapi.from_dict(document, config=schemathesis.Config.from_dict(settings))


def make_keys(client: httpx.Client, **limits: float) -> dict[str, str]:
    """A fresh key of every tenant, by the tenant's name, with `limits` instead of the operator's."""
    keys: dict[str, str] = {}
    for owner, scopes in TENANTS.items():
        asked = {"owner": owner, "name": "drill", "scopes": scopes, "limits": limits}
        response = client.post("/v1/admin/keys", json=asked)
        keys[owner] = response.raise_for_status().json()["api_key"]
    every = client.get("/v1/admin/keys").raise_for_status().json()["keys"]
    fuzz_rules.KEPT_KEYS.update(key["id"] for key in every)
    return keys


def what_is_served(client: httpx.Client) -> dict[str, list[str]]:
    """The ids of models and SAEs, by the name of the field that names one."""
    return {
        field: [item["id"] for item in client.get(f"/v1/{field}s").raise_for_status().json()[f"{field}s"]]
        for field in ("model", "sae")
    }


def drill(base_url: str, administrator: str, effort: Effort, *, requests: int, seed: int, seconds: float) -> Tally:
    """Rounds until there were `requests` requests, or `seconds` have passed."""
    tally = Tally()
    give_up_at = time.monotonic() + seconds
    with httpx.Client(
        base_url=base_url, trust_env=False, headers={"Authorization": f"Bearer {administrator}"}
    ) as client:
        keys, served = make_keys(client), what_is_served(client)
    while tally.requests < requests and time.monotonic() < give_up_at:
        Round(base_url, keys, served, seed, effort).run(tally, give_up_at)
        keys = dict(reversed(keys.items()))
        seed += 1
    return tally


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=20_000, help="how many at least")
    parser.add_argument("--minutes", type=float, default=15, help="how long at most")
    parser.add_argument("--examples", type=int, default=100, help="random requests per operation and round")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", type=Path, default=STORE, help="where the models are prepared")
    asked = parser.parse_args(arguments)
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="lensd-fuzz-") as home,
        running_stack(Path(home), asked.store.resolve(), **AMPLE) as stack,
    ):
        tally = drill(
            stack.base_url,
            stack.api_key,
            Effort(asked.examples),
            requests=asked.requests,
            seed=asked.seed,
            seconds=asked.minutes * 60,
        )
    print(report(tally))
    if REPORT.is_file():
        command = f"python -m tests.chaos.fuzz --seed {asked.seed} --requests {asked.requests}"
        write_section("fuzz", section(tally, command, time.monotonic() - began), REPORT)
    enough = tally.requests >= asked.requests
    if not enough:
        print(f"too few requests in {asked.minutes:g} minutes: {tally.requests:,} of {asked.requests:,}")
    return 0 if enough and not tally.failures else 1


if __name__ == "__main__":
    sys.exit(main())
