"""`benchmarks/RESULTS.md`, `GROUND_TRUTH.md` and `CHAOS.md`: one section per benchmark, each written by its own run."""

import os
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")
GROUND_TRUTH = Path(__file__).with_name("GROUND_TRUTH.md")
CHAOS = Path(__file__).with_name("CHAOS.md")
_HEADS = {
    RESULTS: """# Benchmarks

Written by the benchmarks themselves; `make bench` runs them all. Both sides of a comparison run in one process.
""",
    CHAOS: """# Faults survived

Scripted drills on real processes, written by `make chaos`; `make test` runs each of them in small.
""",
    GROUND_TRUTH: """# Ground truth

How true the methods are on real models; written by `make ground-truth`. `make test` holds them on tiny ones in float64.
""",
}


def write_section(title: str, body: str, file: Path = RESULTS) -> None:
    """Put `body` under `## title`, in the place of what an earlier run wrote there."""
    text = file.read_text(encoding="utf-8") if file.exists() else _HEADS[file]
    section = f"## {title}\n\n{body.strip()}\n"
    pattern = re.compile(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    found = pattern.search(text)
    text = pattern.sub(lambda _: section + "\n", text) if found else f"{text.rstrip()}\n\n{section}"
    file.write_text(text.rstrip() + "\n", encoding="utf-8")


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def circumstances(command: str, threads: int, load: tuple[float, float]) -> str:
    """What a reader needs to judge the figures: command, machine, load before and after, versions."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "transformer-lens"))
    return (
        f"`{command}`; {os.cpu_count()} cores, {threads} torch threads, "
        f"load {load[0]:.1f} before and {load[1]:.1f} after; {packages}; float32."
    )
