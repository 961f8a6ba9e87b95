"""What the README shows, for the tests that run it."""

import json
import re
from pathlib import Path
from typing import Any

README = Path(__file__).resolve().parents[1] / "README.md"


def json_blocks() -> list[dict[str, Any]]:
    text = README.read_text(encoding="utf-8")
    return [json.loads(block) for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL)]


def job_specs() -> list[dict[str, Any]]:
    """The jobs that it posts."""
    return [block for block in json_blocks() if "kind" in block]


def problem() -> dict[str, Any]:
    """The refusal that it shows."""
    (shown,) = (block for block in json_blocks() if "code" in block)
    return shown
