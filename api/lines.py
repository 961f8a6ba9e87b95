"""From a body of JSON lines to typed values: every line is checked before any is used, and each wrong one is numbered.

A line's pointer counts from 0, as JSON pointers do (`/2/text`); its message names it as editors do ("line 3").
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from api.bodies import BodyParser
from services.contracts.errors import ErrorCode, InvalidSpec, LensdError, Violation

MAX_EXPLAINED = 100
"""Wrong lines told in full; the others by number alone."""

_MAX_RANGES = 200

Line = TypeVar("Line")


class InvalidLines(InvalidSpec):
    """Lines that cannot be used: all of their numbers, and what is wrong with the first of them."""

    def __init__(self, violations: Sequence[Violation], wrong: Sequence[int], lines: int) -> None:
        super().__init__(violations)
        message = f"{len(wrong):,} of {lines:,} lines are wrong, and nothing was stored: {_ranges(wrong)}"
        self.message = message
        self.args = (message,)


@dataclass(frozen=True)
class Numbered(Generic[Line]):
    """A line's value and its number, counted from 1; blank lines count."""

    number: int
    value: Line


def parse_lines(parser: BodyParser[Line], raw: bytes, at_most: int) -> list[Numbered[Line]]:
    """The values of all lines that are not blank; raises InvalidSpec, naming every wrong line."""
    lines = [(number, line) for number, line in enumerate(raw.split(b"\n"), start=1) if line.strip()]
    if not 1 <= len(lines) <= at_most:
        message = f"the body has {len(lines):,} lines: send 1 to {at_most:,}"
        raise InvalidSpec([Violation("", ErrorCode.INVALID_REQUEST, message)])
    values: list[Numbered[Line]] = []
    violations: list[Violation] = []
    wrong: list[int] = []
    for number, line in lines:
        try:
            values.append(Numbered(number, parser.parse(line)))
        except LensdError as error:
            wrong.append(number)
            if len(wrong) <= MAX_EXPLAINED:
                violations.append(_violation(number, error))
    if wrong:
        raise InvalidLines(violations, wrong, len(lines))
    return values


def at_line(number: int, pointer: str, code: ErrorCode, message: str) -> Violation:
    """A violation within the line `number`, counted from 1."""
    return Violation(f"/{number - 1}{pointer}", code, f"line {number}: {message}")


def _violation(number: int, error: LensdError) -> Violation:
    pointer = error.violations[0].pointer if isinstance(error, InvalidSpec) else ""
    return at_line(number, pointer, error.code, error.message)


def _ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as "2, 5 to 9"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    told = [str(first) if first == last else f"{first} to {last}" for first, last in runs[:_MAX_RANGES]]
    more = f" and {len(runs) - _MAX_RANGES:,} more places" if len(runs) > _MAX_RANGES else ""
    return ", ".join(told) + more
