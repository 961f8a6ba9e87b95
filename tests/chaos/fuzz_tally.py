"""What a fuzzing drill has seen, in counts, and as text."""

from collections import Counter
from dataclasses import dataclass, field

from schemathesis.engine import events

from benchmarks.report import table

SHOWN_FAILURES = 40


@dataclass
class Tally:
    """What a drill has seen."""

    requests: int = 0
    by_status: Counter[str] = field(default_factory=Counter)
    by_operation: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By the operation and the first digit of its status."""
    by_phase: Counter[str] = field(default_factory=Counter)
    checks: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    told: dict[str, str] = field(default_factory=dict)
    """One failure in full by its kind and operation."""

    def note(self, event: events.ScenarioFinished) -> None:
        recorder = event.recorder
        for case_id, interaction in recorder.interactions.items():
            self.requests += 1
            self.by_phase[event.phase.value] += 1
            answered = interaction.response
            status = "none" if answered is None else str(answered.status_code)
            self.by_status[status] += 1
            self.by_operation[recorder.cases[case_id].value.operation.label, status[0]] += 1
        for case_id, checks in recorder.checks.items():
            for check in checks:
                self.checks[check.name] += 1
                if check.failure_info is not None:
                    case = recorder.cases[case_id].value
                    self.fail(
                        check.name,
                        case.operation.label,
                        f"{check.failure_info.failure}\n{check.failure_info.code_sample}",
                    )

    def fail(self, check: str, operation: str, told: str) -> None:
        self.failures[check] += 1
        self.told.setdefault(f"{check} | {operation} | {told.splitlines()[0]}", told)


def report(tally: Tally) -> str:
    """Counts by phase, status, operation and check, and one failure of each kind in full."""
    phases = ", ".join(f"{count:,} {phase}" for phase, count in tally.by_phase.items())
    lines = [f"{tally.requests:,} requests: {phases}", ""]
    lines += [f"{status:>10} {count:>8,}" for status, count in sorted(tally.by_status.items())]
    lines += ["", f"{'operation':<58}{'2xx':>8}{'4xx':>8}{'5xx':>8}"]
    for label in sorted({label for label, _ in tally.by_operation}):
        lines.append(f"{label:<58}" + "".join(f"{tally.by_operation[label, digit]:>8,}" for digit in "245"))
    lines += ["", f"{'check':<32}{'held':>10}{'failed':>10}"]
    for check in sorted(tally.checks | tally.failures):
        held, failed = held_and_failed(tally, check)
        lines.append(f"{check:<32}{held:>10}{failed:>10}")
    for kind, told in list(tally.told.items())[:SHOWN_FAILURES]:
        lines += ["", f"--- {kind}", told]
    return "\n".join(lines)


def section(tally: Tally, command: str, seconds: float) -> str:
    """The same for the page of drills."""
    statuses = [(status, f"{count:,}") for status, count in sorted(tally.by_status.items())]
    checks = [(name, *held_and_failed(tally, name)) for name in sorted(tally.checks | tally.failures)]
    phases = ", ".join(f"{count:,} {phase}" for phase, count in tally.by_phase.items())
    return (
        f"schemathesis over `openapi.yaml` with the keys of two tenants, over real HTTP: {tally.requests:,} requests "
        f"({phases}).\n\n{table(('status', 'answers'), statuses)}\n\n{table(('check', 'held', 'failed'), checks)}\n\n"
        f"`{command}`; {seconds:.0f} s."
    )


def held_and_failed(tally: Tally, check: str) -> tuple[str, str]:
    failed = tally.failures[check]
    return f"{max(0, tally.checks[check] - failed):,}", f"{failed:,}"
