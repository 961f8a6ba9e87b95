"""From the raw bytes of a request to a typed value, each way of being wrong told apart.

1. text: UTF-8, no deeper than `MAX_DEPTH`;
2. JSON: no duplicate keys, no NaN or Infinity;
3. the schema: strict, unknown fields refused, every violation with its pointer.
"""

import json
import re
from functools import cached_property
from typing import Any, Generic, NoReturn, TypeVar

from pydantic import TypeAdapter, ValidationError

from api.violations import find_violations, show
from services.contracts.errors import ErrorCode, InvalidSpec, LensdError, Violation

MAX_DEPTH = 32
MAX_ERRORS = 10_000
"""Above it nothing is listed: describing hundreds of thousands of errors would hold the interpreter for seconds."""

# Possessive, and content with a string that does not end: so that no body takes more than one pass.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_BRACKETS = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"{}[]"))

Body = TypeVar("Body")


class BodyParser(Generic[Body]):
    """Reads bodies of one type. Parsing a large body takes tens of milliseconds: keep it off the event loop."""

    def __init__(self, adapter: TypeAdapter[Body]) -> None:
        self._adapter = adapter

    @cached_property
    def _schema(self) -> dict[str, Any]:
        return self._adapter.json_schema()

    def parse(self, raw: bytes) -> Body:
        """The typed body; raises LensdError(INVALID_JSON | BODY_TOO_DEEP) or InvalidSpec."""
        _check_json(_read_text(raw))
        try:
            return self._adapter.validate_json(raw)
        except ValidationError as invalid:
            self._refuse(invalid)

    def _refuse(self, invalid: ValidationError) -> NoReturn:
        if invalid.error_count() > MAX_ERRORS:
            message = f"the body has {invalid.error_count():,} errors, too many to list: make one item right first"
            raise InvalidSpec([Violation("", ErrorCode.INVALID_REQUEST, message)])
        errors = invalid.errors(include_url=False)
        if errors[0]["type"] == "json_invalid":
            _refuse_json(errors[0]["ctx"]["error"])
        raise InvalidSpec(find_violations(errors, self._schema)) from None


def depth(raw: bytes, at_most: int) -> int:
    """How deep the brackets of a JSON text nest, counted up to `at_most` + 1; those inside strings do not count."""
    brackets = _STRING.sub(b"", raw).translate(_BRACKETS, _NOT_BRACKETS)
    levels = 0
    while levels <= at_most and b"[" in brackets:
        pruned = brackets.replace(b"[]", b"")
        if len(pruned) == len(brackets):
            # Unbalanced: not JSON, and as deep as what is left over.
            return levels + brackets.count(b"[")
        brackets = pruned
        levels += 1
    return levels


def _read_text(raw: bytes) -> str:
    if not raw.strip():
        _refuse_json("the body is empty: send a JSON object")
    if depth(raw, MAX_DEPTH) > MAX_DEPTH:
        raise LensdError(ErrorCode.BODY_TOO_DEEP, f"the body nests deeper than {MAX_DEPTH} levels")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        _refuse_json(f"byte {error.start} (0x{raw[error.start]:02x}) is not UTF-8")


def _check_json(text: str) -> None:
    try:
        json.loads(text, object_pairs_hook=_refuse_duplicates, parse_constant=_refuse_constant, parse_int=_keep_digits)
    except json.JSONDecodeError as error:
        _refuse_json(f"{error.msg} at line {error.lineno}, column {error.colno}")


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            _refuse_json(f"the key {show(key)} appears twice in one object")
        seen.add(key)


def _refuse_constant(constant: str) -> NoReturn:
    _refuse_json(f"{constant} is not JSON: numbers are finite")


def _keep_digits(digits: str) -> str:
    # Only the form is checked here; Python would refuse to convert thousands of digits.
    return digits


def _refuse_json(reason: str) -> NoReturn:
    raise LensdError(ErrorCode.INVALID_JSON, f"the body is not valid JSON: {reason}")
