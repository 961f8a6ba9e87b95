"""`make demo`: start the stack, post one job of each kind as any client would, show the results, stop everything.

From the moment the stack is up this is an HTTP client with an API key like every other.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from deploy.local.errors import LaunchError
from deploy.local.logs import Log, StreamLog
from deploy.local.settings import LocalSettings
from deploy.local.show import show_attribution, show_features, show_patching
from deploy.local.signals import ended_by_signals
from deploy.local.stack import Stack

CLEAN = "When John and Mary went to the shops, John gave the bag to"
CORRUPTED = "When John and Mary went to the shops, Mary gave the bag to"
MODEL = "smollm2-135m"
SAE = "smollm2-135m-l15-resid-post"

PATCHING = {
    "kind": "patching",
    "model": MODEL,
    "method": {"type": "activation_patching", "site": "resid_pre", "mode": "denoising"},
    "pairs": [{"clean": CLEAN, "corrupted": CORRUPTED, "answer": " Mary", "foil": " John"}],
    "metric": {"type": "logit_diff"},
}
ATTRIBUTION = {
    "kind": "attribution",
    "model": MODEL,
    "method": {"type": "direct_logit_attribution"},
    "examples": [{"prompt": CLEAN, "answer": " Mary", "foil": " John"}],
    "metric": {"type": "logit_diff"},
}
FEATURES = {
    "kind": "features",
    "model": MODEL,
    "sae": SAE,
    "prompts": ["The Eiffel Tower is in Paris"],
    "top_k": 10,
}
KEY_LIFETIME = timedelta(hours=1)


def run(settings: LocalSettings) -> int:
    """The whole demonstration; the exit code. Raises LaunchError when the stack cannot run."""
    console = Console(highlight=False)
    try:
        with ended_by_signals(), _quiet_log(settings, console) as log:
            console.print("starting Valkey, a worker and the gateway")
            with Stack(settings, log) as stack, _client(settings, stack.issue_key("demo", KEY_LIFETIME)) as client:
                _show_all(console, client)
                console.print(
                    f"\nWhile `make up` runs, the interactive API page is at [bold]{settings.base_url}/docs[/]"
                )
                console.print("stopping everything")
    except KeyboardInterrupt:
        console.print("interrupted")
        return 130
    except LaunchError as error:
        raise LaunchError(f"{error} (the processes' own lines are in {_log_file(settings)})") from error
    return 0


@contextmanager
def _quiet_log(settings: LocalSettings, console: Console) -> Iterator[Log]:
    """The processes' lines go to a file; preparing a model takes a while and is said aloud."""
    path = _log_file(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        to_file = StreamLog(file)

        def log(name: str, line: str) -> None:
            to_file(name, line)
            if name == "prepare":
                console.print(line, markup=False)

        yield log


def _log_file(settings: LocalSettings) -> Path:
    return settings.home / "run" / "demo.log"


def _show_all(console: Console, client: httpx.Client) -> None:
    console.rule("[bold]Activation patching[/]: where in the model is it decided who gets the bag?", align="left")
    console.print(f"  clean      {CLEAN!r} → ' Mary'\n  corrupted  {CORRUPTED!r} → ' John'")
    show_patching(console, _run_job(console, client, PATCHING))
    console.print()
    console.rule("[bold]Direct logit attribution[/]: which parts write ' Mary' over ' John'?", align="left")
    show_attribution(console, _run_job(console, client, ATTRIBUTION))
    console.print()
    console.rule("[bold]SAE features[/]: what does layer 15 hold while it reads?", align="left")
    show_features(console, _run_job(console, client, FEATURES))


def _client(settings: LocalSettings, key: str) -> httpx.Client:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.Client(
        base_url=settings.base_url, headers=headers, timeout=httpx.Timeout(30, read=120), trust_env=False
    )


def _run_job(console: Console, client: httpx.Client, spec: dict[str, Any]) -> dict[str, Any]:
    """Post a job, follow its events, and return its result. Raises LaunchError when it does not succeed."""
    posted = client.post("/v1/jobs", json=spec)
    if posted.is_error:
        raise LaunchError(f"the job was refused: {posted.text}")
    location = posted.headers["Location"]
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        TextColumn("{task.fields[rows]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("queued", total=None, rows="")
        for job in _events(client, location):
            done, planned = job["progress"]["done"], job["progress"]["planned"]
            rows = f"{done}/{planned} rows" if planned else ""
            progress.update(bar, description=job["status"], completed=done, total=planned or None, rows=rows)
    finished = client.get(location).json()
    if finished["status"] != "succeeded":
        raise LaunchError(f"the job {finished['status']}: {finished['error']}")
    usage = finished["result"]["usage"]
    console.print(
        f"  {finished['id']}: {usage['seconds']:.2f} s, {usage['token_layers']} token-layers of work, "
        f"{finished['result']['provenance']['execution']} execution{', asked before' if finished['cached'] else ''}\n"
    )
    result: dict[str, Any] = finished["result"]
    return result


def _events(client: httpx.Client, location: str) -> Iterator[dict[str, Any]]:
    """The job's states as server-sent events carry them."""
    with client.stream("GET", f"{location}/events") as response:
        if response.is_error:
            raise LaunchError(f"the job's events answer {response.status_code}")
        for line in response.iter_lines():
            if line.startswith("data:"):
                yield json.loads(line.removeprefix("data:"))
