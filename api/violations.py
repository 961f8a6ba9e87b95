"""From Pydantic's errors to violations: a pointer into the body, the offending value, and what would be accepted.

Pydantic's locations name branches of unions beside the members of the body. So each location is walked through the
request's JSON schema, which knows the one from the other, what an object may contain, and which types a place takes.

1. walk the location to a pointer and to the schema at that place;
2. drop what only follows from another error (a list "too short" because its items were refused);
3. say the errors of one place in one sentence, naming every form that would be accepted there.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import ErrorDetails

from services.contracts.base import BLANK
from services.contracts.errors import ErrorCode, Violation

Schema = Mapping[str, Any]

_SHOWN_CHARACTERS = 80
_EXPECTED = {
    "literal_error": "one of {expected}",
    "enum": "one of {expected}",
    "int_parsing": "an integer",
    "greater_than": "a number greater than {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number less than {lt}",
    "less_than_equal": "a number of at most {le}",
    "finite_number": "a finite number",
    "string_pattern_mismatch": "text that matches {pattern}",
    "string_too_short": "at least {min_length} character(s)",
    "string_too_long": "at most {max_length} characters",
    "too_short": "at least {min_length} item(s)",
    "too_long": "at most {max_length} items",
}
_TYPE_NAMES = {
    "string": "a string",
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}


@dataclass(frozen=True)
class _Place:
    pointer: str
    schema: Schema
    """What the place accepts, all branches of a union included."""
    narrowed: Schema
    """The branch that the body chose."""


def find_violations(errors: Iterable[ErrorDetails], schema: Schema) -> list[Violation]:
    """What is wrong, one violation per place, in the order in which Pydantic found it.

    `schema` is the JSON schema that the body was validated against, with its `$defs`.
    """
    places: dict[str, tuple[_Place, list[ErrorDetails]]] = {}
    for error in errors:
        if not _follows_from_another(error):
            place = _walk(error, schema)
            places.setdefault(place.pointer, (place, []))[1].append(error)
    return [
        Violation(place.pointer, ErrorCode.INVALID_REQUEST, _sentence(place, found, schema))
        for place, found in places.values()
    ]


def show(value: Any) -> str:
    """`value` as the client wrote it, shortened."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"a list of {len(value):,}"
    whole = json.dumps(value[: _SHOWN_CHARACTERS + 1] if isinstance(value, str) else value, ensure_ascii=False)
    if len(whole) <= _SHOWN_CHARACTERS:
        return whole
    size = f" ({len(value):,} characters)" if isinstance(value, str) else ""
    return f"{whole[:_SHOWN_CHARACTERS]}…{size}"


def _walk(error: ErrorDetails, root: Schema) -> _Place:
    tokens: list[str] = []
    whole = narrowed = root
    for part in error["loc"]:
        found = _child(narrowed, part, root)
        if found is None:
            continue
        narrowed, is_branch = found
        if not is_branch:
            whole = narrowed
            tokens.append(str(part))
    if error["type"] == "extra_forbidden":
        tokens.append(str(error["loc"][-1]))
    elif error["type"].startswith("union_tag_"):
        tokens.append(error["ctx"]["discriminator"].strip("'"))
    return _Place("".join(f"/{_escape(token)}" for token in tokens), whole, narrowed)


def _child(node: Schema, part: str | int, root: Schema) -> tuple[Schema, bool] | None:
    """What `part` of a location leads to: a branch of a union (True), or a member or an item; None for a mere tag."""
    node = _resolve(node, root)
    mapping = node.get("discriminator", {}).get("mapping", {})
    if part in mapping:
        return {"$ref": mapping[part]}, True
    branches = _branches(node)
    if branches:
        return next((found for branch in branches if (found := _child(branch, part, root)) is not None), None)
    if isinstance(part, int):
        return (node["items"], False) if "items" in node else None
    if part in node.get("properties", {}):
        return node["properties"][part], False
    others = node.get("additionalProperties")
    return (others, False) if isinstance(others, Mapping) and part != "[key]" else None


def _resolve(node: Schema, root: Schema) -> Schema:
    while "$ref" in node:
        node = root["$defs"][node["$ref"].rsplit("/", 1)[1]]
    return node


def _branches(node: Schema) -> Sequence[Schema]:
    branches: Sequence[Schema] = node.get("oneOf") or node.get("anyOf") or ()
    return branches


def _leaves(node: Schema, root: Schema) -> Iterator[Schema]:
    node = _resolve(node, root)
    branches = _branches(node)
    if not branches:
        yield node
    for branch in branches:
        yield from _leaves(branch, root)


def _follows_from_another(error: ErrorDetails) -> bool:
    """Pydantic counts only the valid items, so a list with wrong items is also "too short"."""
    return (
        error["type"] == "too_short"
        and isinstance(error["input"], Sequence)
        and len(error["input"]) >= error["ctx"]["min_length"]
    )


def _sentence(place: _Place, errors: Sequence[ErrorDetails], root: Schema) -> str:
    first = errors[0]
    name = place.pointer.rsplit("/", 1)[-1].replace("~1", "/").replace("~0", "~")
    match first["type"]:
        case "missing":
            return f"{show(name)} is missing"
        case "extra_forbidden":
            fields = sorted({field for leaf in _leaves(place.narrowed, root) for field in leaf.get("properties", ())})
            return f"{show(name)} is not a field here: allowed are {', '.join(fields)}"
        case "union_tag_not_found":
            return f"{show(name)} is missing: expected one of {', '.join(_tags(place.narrowed, root))}"
        case "union_tag_invalid":
            return f"{show(first['ctx']['tag'])} is not known: expected one of {first['ctx']['expected_tags']}"
    # Of a union's branches, those that take the value's type say more than those that do not.
    telling = [error for error in errors if not error["type"].endswith("_type")]
    subject = f"the key {show(first['input'])}" if first["loc"][-1:] == ("[key]",) else show(first["input"])
    return f"{subject} is not accepted here: expected {_expected(telling, place, root)}"


def _expected(telling: Sequence[ErrorDetails], place: _Place, root: Schema) -> str:
    if telling:
        return " or ".join(requirement(error) for error in telling)
    types = (leaf.get("type") for leaf in _leaves(place.schema, root))
    return " or ".join(dict.fromkeys(_TYPE_NAMES.get(str(name), "another value") for name in types))


def requirement(error: ErrorDetails) -> str:
    """What the place of `error` would accept."""
    template = _EXPECTED.get(error["type"])
    told = error["msg"] if template is None else template.format_map(error.get("ctx", {}))
    return told.replace(BLANK, r"\s")


def _tags(node: Schema, root: Schema) -> Iterator[str]:
    node = _resolve(node, root)
    tags = node.get("discriminator", {}).get("mapping", {})
    yield from (f"'{tag}'" for tag in tags)
    for branch in _branches(node) if not tags else ():
        yield from _tags(branch, root)


def _escape(token: str) -> str:
    return token.replace("~", "~0").replace("/", "~1")
