"""What an example leaves behind on its docs page: a file of figures, and tables between two marks."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from examples.client import Json

NUMBERS = re.compile(r'\[[^][{}"]*\]')
"""A list that holds numbers alone."""

BEGIN, END = "<!-- tables written by {} -->", "<!-- end of tables -->"


def write_figures(found: Json, path: Path) -> None:
    """JSON with a line for each row of numbers: people read the file, git compares it."""
    text = json.dumps(found, ensure_ascii=False, indent=1)
    path.write_text(NUMBERS.sub(lambda row: " ".join(row[0].split()), text) + "\n", encoding="utf-8")


def rounded(node: Any) -> Any:
    """The same with every float to four decimals, so that tables, plots and the file of figures say the same."""
    if isinstance(node, float):
        return round(node, 4)
    if isinstance(node, dict):
        return {key: rounded(value) for key, value in node.items()}
    return [rounded(value) for value in node] if isinstance(node, list | tuple) else node


def write_tables(lines: Iterable[str], page: Path, script: str) -> None:
    """Put the tables between the page's two marks."""
    text = page.read_text(encoding="utf-8")
    page.write_text(with_tables(lines, text, script), encoding="utf-8")


def with_tables(lines: Iterable[str], text: str, script: str) -> str:
    """The page's text with these tables."""
    begin = BEGIN.format(script)
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(END)
    return "\n".join([f"{before}{begin}", *lines, f"{END}{after}"])
