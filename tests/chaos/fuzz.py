"""Drill: schemathesis over `openapi.yaml` against the real stack, with the keys of two tenants: `python -m tests.chaos.fuzz`.

1. start Valkey, a gateway and a worker, and make a key for each of two tenants, one of them an administrator;
2. in rounds, until there were enough requests: examples, boundary values, random data good and bad, chains of requests,
   every answer held against every check; the tenants change places from round to round;
3. print what was asked, what was answered and what failed; exit with 1 if anything did.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import schemathesis
from schemathesis.engine import events, from_schema
from schemathesis.schemas import BaseSchema

from api.openapi import describe
from services.tenants.keys import Scope
from tests.chaos import fuzz_rules
from tests.stack.harness import running_stack

STORE = Path(".lensd")
TENANTS: Mapping[str, tuple[Scope, ...]] = {
    "alice": (Scope.JOBS, Scope.READ),
    "bob": (Scope.JOBS, Scope.READ, Scope.ADMIN),
}
AMPLE: Mapping[str, str] = {
    # So that 429 answers few requests and not most.
    "LENSD_REQUESTS_PER_SECOND": "100000",
    "LENSD_REQUEST_BURST": "1000000",
    # So that the worker keeps up with the jobs that are accepted.
    "LENSD_MAX_JOB_TOKEN_LAYERS": "200000",
    "LENSD_THREADS": "1",
}
SHOWN_FAILURES = 40


@dataclass
class Tally:
    """What a drill has seen."""

    requests: int = 0
    by_status: Counter[str] = field(default_factory=Counter)
    by_phase: Counter[str] = field(default_factory=Counter)
    checks: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    told: dict[str, str] = field(default_factory=dict)
    """One failure in full by its kind and operation."""

    def note(self, event: events.ScenarioFinished) -> None:
        recorder = event.recorder
        for interaction in recorder.interactions.values():
            self.requests += 1
            self.by_phase[event.phase.value] += 1
            answered = interaction.response
            self.by_status["no answer" if answered is None else str(answered.status_code)] += 1
        for case_id, checks in recorder.checks.items():
            for check in checks:
                self.checks[check.name] += 1
                if check.failure_info is not None:
                    case = recorder.cases[case_id].value
                    self.fail(check.name, case.operation.label, f"{check.failure_info.failure}\n{check.failure_info.code_sample}")

    def fail(self, check: str, operation: str, told: str) -> None:
        self.failures[check] += 1
        self.told.setdefault(f"{check} | {operation} | {told.splitlines()[0]}", told)


def fuzz(base_url: str, keys: Mapping[str, str], *, seed: int, examples: int, tally: Tally, give_up_at: float) -> None:
    """One round of all phases. `keys` are the tenants' by name, the first of them the one that asks."""
    with tempfile.TemporaryDirectory() as folder:
        credentials = Path(folder) / "keys.json"
        credentials.touch(mode=0o600)
        users = [
            {"name": name, "fixedHeaders": [{"name": "Authorization", "value": f"Bearer {key}"}]}
            for name, key in keys.items()
        ]
        credentials.write_text(json.dumps({"auth": users}), encoding="utf-8")
        schema = _schema(base_url, credentials, list(keys), seed, examples)
        fuzz_rules.KEPT_KEYS.update(key.split("_")[1] for key in keys.values())
        stream = from_schema(schema).execute()
        for event in stream:
            if isinstance(event, events.ScenarioFinished):
                tally.note(event)
            elif isinstance(event, events.NonFatalError):
                tally.fail("error", event.label, str(event.value))
            elif isinstance(event, events.FatalError):
                raise event.exception
            if time.monotonic() > give_up_at:
                stream.stop()


def _schema(base_url: str, credentials: Path, tenants: Sequence[str], seed: int, examples: int) -> BaseSchema:
    settings: dict[str, Any] = {
        "base-url": base_url,
        "seed": seed,
        "workers": 2,
        "request-timeout": 90.0,
        "max-stream-events": 3,
        "continue-on-failure": True,
        "cache": {"enabled": False},
        "auth": {"wfc": {"path": str(credentials), "peers": list(tenants)}},
        "generation": {"max-examples": examples, "no-shrink": True, "database": "none"},
        "checks": {
            # Both are refusals; the check's own list leaves them out.
            "negative_data_rejection": {
                "expected-statuses": [400, 401, 403, 404, 405, 406, 409, 413, 415, 422, 428, 429, 431]
            }
        },
    }
    return schemathesis.openapi.from_dict(fuzz_rules.readable(describe()), config=schemathesis.Config.from_dict(settings))


def make_keys(base_url: str, administrator: str) -> dict[str, str]:
    """A fresh key of every tenant, by the tenant's name."""
    keys: dict[str, str] = {}
    with httpx.Client(base_url=base_url, trust_env=False, headers={"Authorization": f"Bearer {administrator}"}) as client:
        for owner, scopes in TENANTS.items():
            response = client.post("/v1/admin/keys", json={"owner": owner, "name": "drill", "scopes": scopes})
            keys[owner] = response.raise_for_status().json()["api_key"]
    return keys


def drill(base_url: str, administrator: str, *, requests: int, seed: int, examples: int, seconds: float) -> Tally:
    """Rounds until there were `requests` requests, or `seconds` have passed."""
    tally = Tally()
    give_up_at = time.monotonic() + seconds
    keys = make_keys(base_url, administrator)
    while tally.requests < requests and time.monotonic() < give_up_at:
        fuzz(base_url, keys, seed=seed, examples=examples, tally=tally, give_up_at=give_up_at)
        keys = dict(reversed(keys.items()))
        seed += 1
    return tally


def report(tally: Tally) -> str:
    lines = [f"{tally.requests:,} requests: " + ", ".join(f"{n:,} {phase}" for phase, n in tally.by_phase.items()), ""]
    lines += [f"{status:>10} {count:>8,}" for status, count in sorted(tally.by_status.items())]
    lines += ["", f"{'check':<32}{'held':>10}{'failed':>10}"]
    for check in sorted(tally.checks | tally.failures):
        failed = tally.failures[check]
        lines.append(f"{check:<32}{tally.checks[check] - failed:>10,}{failed:>10,}")
    for kind, told in list(tally.told.items())[:SHOWN_FAILURES]:
        lines += ["", f"--- {kind}", told]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=20_000, help="how many at least")
    parser.add_argument("--minutes", type=float, default=15, help="how long at most")
    parser.add_argument("--examples", type=int, default=100, help="random requests per operation and round")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", type=Path, default=STORE, help="where the models are prepared")
    asked = parser.parse_args(arguments)
    with (
        tempfile.TemporaryDirectory(prefix="lensd-fuzz-") as home,
        running_stack(Path(home), asked.store.resolve(), **AMPLE) as stack,
    ):
        tally = drill(
            stack.base_url,
            stack.api_key,
            requests=asked.requests,
            seed=asked.seed,
            examples=asked.examples,
            seconds=asked.minutes * 60,
        )
    print(report(tally))
    enough = tally.requests >= asked.requests
    if not enough:
        print(f"too few requests in {asked.minutes:g} minutes: {tally.requests:,} of {asked.requests:,}")
    return 0 if enough and not tally.failures else 1


if __name__ == "__main__":
    sys.exit(main())
