"""Handing a fresh API key to the one person it is for."""

import os
from pathlib import Path
from typing import IO

FILE = "api-key"


def hand_over(plaintext: str, home: Path, terminal: IO[str]) -> None:
    """Print the key on the terminal, or write it to a file only its owner can read when there is no terminal."""
    if terminal.isatty():
        print(f"\n  API key: {plaintext}\n  Keep it: it is not shown again.\n", file=terminal, flush=True)
        return
    path = home / FILE
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(f"{plaintext}\n")
    print(f"the first API key is in {path}", file=terminal, flush=True)
