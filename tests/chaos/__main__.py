"""Run the drills one after another, say what held, and write it down.

    python -m tests.chaos [drill …] [--short] [--no-report]

Exits with 1 when something did not hold.
"""

import argparse
import importlib
import importlib.util
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

from benchmarks.report import CHAOS, table, write_section
from tests.chaos.drill import FULL, SHORT, Drill, Findings
from tests.chaos.drills import ALL
from tests.chaos.plant import running_plant

FUZZ = "tests.chaos.fuzz"
"""The drill that sends what no client should send; a program of its own with a `main`."""


def conduct(drill: Drill, short: bool, store: Path) -> tuple[Findings, float]:
    """One drill on a plant of its own; one that breaks off has found that something does not hold."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"lensd-{drill.name}-") as folder:
        try:
            with running_plant(Path(folder) / "home", store, workers=drill.workers) as plant:
                findings = drill.run(plant, SHORT if short else FULL)
        except Exception as error:
            traceback.print_exc()
            findings = Findings()
            findings.holds("the drill goes to its end", "yes", f"{type(error).__name__}: {error}"[:500], held=False)
    return findings, time.monotonic() - began


def section(drill: Drill, findings: Findings, seconds: float, command: str) -> str:
    """What goes into the report."""
    rows = [(check.what, check.must, check.seen, "yes" if check.held else "**no**") for check in findings.checks]
    notes = "".join(f"- {figure}\n" for figure in findings.figures)
    title = drill.title[0].upper() + drill.title[1:]
    return f"{title}.\n\n{table(('what', 'must', 'seen', 'held'), rows)}\n\n{notes}\n`{command}`; {seconds:.0f} s."


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    names = [drill.name for drill in ALL]
    parser.add_argument("drills", nargs="*", choices=[*names, "fuzz", []], help=f"of {', '.join(names)}, fuzz; all")
    parser.add_argument("--short", action="store_true", help="a few jobs and kills only")
    parser.add_argument("--no-report", action="store_true", help="leave benchmarks/CHAOS.md as it is")
    given = parser.parse_args()
    store = Path(os.environ.get("LENSD_HOME", ".lensd")).resolve()
    broken = 0
    for drill in ALL:
        if given.drills and drill.name not in given.drills:
            continue
        print(f"\n{drill.name}: {drill.title}", flush=True)
        findings, seconds = conduct(drill, given.short, store)
        broken += len(findings.broken)
        _show(findings, seconds)
        if not given.no_report:
            command = f"python -m tests.chaos {drill.name}" + (" --short" if given.short else "")
            write_section(drill.name, section(drill, findings, seconds, command), CHAOS)
    if not given.drills or "fuzz" in given.drills:
        broken += _fuzz()
    print(f"\n{broken} things did not hold" if broken else "\nall of it held")
    return 1 if broken else 0


def _show(findings: Findings, seconds: float) -> None:
    wide = max((len(check.what) for check in findings.checks), default=0)
    for check in findings.checks:
        print(f"  {'ok  ' if check.held else 'FAIL'} {check.what:<{wide}}  must {check.must}  seen {check.seen}")
    for figure in findings.figures:
        print(f"       {figure}")
    print(f"       {seconds:.0f} s", flush=True)


def _fuzz() -> int:
    """Runs the fuzzing drill where there is one; it writes its own section."""
    if importlib.util.find_spec(FUZZ) is None:
        return 0
    print("\nfuzz", flush=True)
    began, arguments = time.monotonic(), sys.argv
    sys.argv = [FUZZ]
    try:
        code = importlib.import_module(FUZZ).main()
    except SystemExit as leaving:
        code = leaving.code
    finally:
        sys.argv = arguments
    print(f"       {time.monotonic() - began:.0f} s")
    return 1 if code else 0


if __name__ == "__main__":
    sys.exit(main())
