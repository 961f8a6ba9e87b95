"""The file-size budget: 400 lines of Python is where the build says no. `python -m tests.file_sizes` checks it."""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

BUDGET = 400
PROJECT = Path(__file__).resolve().parents[1]


def over_budget(files: Iterable[Path]) -> list[str]:
    """One line for each file that outgrew the budget."""
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    return [
        f"{path} has {length} lines, over {BUDGET}: which idea is missing?"
        for path, length in lengths.items()
        if length > BUDGET
    ]


def main() -> None:
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=PROJECT, check=True, capture_output=True, text=True)
    problems = over_budget(PROJECT / name for name in listed.stdout.split())
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
