"""What the README and the docs show, for the tests that run it."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
README = PROJECT / "README.md"
JOBS = PROJECT / "docs/jobs.md"
FEATURES = PROJECT / "docs/features.md"
BATCHES = PROJECT / "docs/batches.md"


def json_blocks(document: Path) -> list[dict[str, Any]]:
    text = document.read_text(encoding="utf-8")
    return [json.loads(block) for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL)]


def python_blocks(document: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)


def job_specs(*documents: Path) -> list[dict[str, Any]]:
    """The jobs that these documents post."""
    return [block for document in documents for block in json_blocks(document) if "kind" in block]


def name_of(spec: dict[str, Any]) -> str:
    """How a job is told from the others: its kind, and its method where it has one."""
    method = spec.get("method", {}).get("type")
    return f"{spec['kind']} {method}" if method else str(spec["kind"])


def problem() -> dict[str, Any]:
    """The refusal that the README shows."""
    (shown,) = (block for block in json_blocks(README) if "code" in block)
    return shown


@dataclass(frozen=True)
class ShownRequest:
    """A request as a page shows it."""

    method: str
    path: str
    headers: dict[str, str]
    body: str

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}"


def http_requests(document: Path) -> list[ShownRequest]:
    """The requests in a page's blocks of `http`, in order."""
    text = document.read_text(encoding="utf-8")
    return [_request(block) for block in re.findall(r"```http\n(.*?)```", text, re.DOTALL)]


def _request(block: str) -> ShownRequest:
    head, _, body = block.partition("\n\n")
    line, *headers = head.strip().splitlines()
    method, path = line.split(" ", 1)
    return ShownRequest(method, path, dict(each.split(": ", 1) for each in headers), body)
