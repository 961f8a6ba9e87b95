"""How answers are documented: problems under `application/problem+json` only, other bodies under their own type."""

from collections.abc import Mapping, Sequence
from typing import Any

from api.errors import PROBLEM_MEDIA_TYPE
from api.limits import LINES

Responses = dict[int | str, dict[str, Any]]

ITEM_SCHEMA = "x-itemSchema"
"""OpenAPI 3.2's `itemSchema`, under a name that 3.1 allows: what each line or event of a body is."""

PROBLEM_REF = {"$ref": "#/components/schemas/Problem"}

_PROBLEMS: Mapping[int, str] = {
    400: "The body is not JSON, or the request not HTTP.",
    401: "No valid API key.",
    403: "The key lacks the scope.",
    404: "There is no such thing, or it is not yours.",
    406: "None of the representations is acceptable.",
    408: "The request came too slowly.",
    409: "The state of things does not allow this.",
    410: "The result is lost.",
    413: "The body is too large.",
    415: "The body is compressed, or not of the media type that this takes.",
    422: "Something in the request is wrong: see `errors`.",
    429: "Over a limit of the key or its owner: try again after `Retry-After` seconds.",
    431: "Path, query and headers are too large.",
    500: "Something went wrong inside lensd.",
    503: "Not now: try again after `Retry-After` seconds.",
}
_ALWAYS = (400, 408, 431, 500)
_WITH_KEY = (401, 403, 429, 503)
_AFTER_A_WHILE = (429, 503)


NO_KEY: dict[str, Any] = {"security": []}
"""Says that a route needs no API key."""


def problems(*statuses: int, key: bool = True) -> Responses:
    """The problems that a route can answer with, beside those that every route can."""
    every = {*statuses, *_ALWAYS, *(_WITH_KEY if key else ())}
    return {status: _problem(status) for status in sorted(every)}


def body(schema: str, description: str) -> dict[str, Any]:
    """A JSON body of the schema called `schema`."""
    return content("application/json", _reference(schema), description)


def content(media_type: str, schema: Mapping[str, Any], description: str) -> dict[str, Any]:
    return {"description": description, "content": {media_type: {"schema": dict(schema)}}}


def request_body(schema: str, examples: Mapping[str, Any]) -> dict[str, Any]:
    """The documentation of a body that the route parses by itself."""
    return {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": _reference(schema),
                    "examples": {name: {"value": value} for name, value in examples.items()},
                }
            },
        }
    }


def lines_body(schema: str, example: str) -> dict[str, Any]:
    """The documentation of a body of JSON lines, each of the schema called `schema`."""
    return {
        "requestBody": {
            "required": True,
            "description": f"One {schema} a line, in UTF-8; application/x-ndjson is the same.",
            "content": {
                LINES: {
                    "schema": {"type": "string", "format": "binary"},
                    ITEM_SCHEMA: _reference(schema),
                    "example": example,
                }
            },
        }
    }


def event_stream(schemas: Sequence[str], description: str) -> dict[str, Any]:
    """Server-sent events whose data is JSON of one of `schemas`."""
    answer = content("text/event-stream", {"type": "string"}, description)
    data = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"anyOf": [_reference(schema) for schema in schemas]},
    }
    text = {"type": "string"}
    properties = {"id": text, "event": text, "data": data}
    event = {"type": "object", "properties": properties, "required": list(properties)}
    answer["content"]["text/event-stream"][ITEM_SCHEMA] = event
    return answer


def _reference(schema: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{schema}"}


def _problem(status: int) -> dict[str, Any]:
    answer = content(PROBLEM_MEDIA_TYPE, PROBLEM_REF, _PROBLEMS[status])
    if status in _AFTER_A_WHILE:
        answer["headers"] = {
            "Retry-After": {
                "description": "Seconds after which to try again.",
                "required": True,
                "schema": {"type": "integer", "minimum": 0},
            }
        }
    return answer
