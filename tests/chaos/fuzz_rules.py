"""What schemathesis is told about lensd: how to read its document, what to leave alone, which findings are none.

Nothing here names a route, but for the few reasons given with it: what is added to `openapi.yaml` is fuzzed by itself.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import schemathesis
from schemathesis.core.failures import Failure
from schemathesis.openapi.checks import RejectedPositiveData

from services.contracts.errors import ErrorCode

ITEMS = "x-itemSchema"
"""OpenAPI 3.2's `itemSchema`, under the name that 3.1 allows: what each line, or each event, of a body is."""

PROMISED = frozenset(
    {
        ErrorCode.INVALID_JSON,
        ErrorCode.INVALID_REQUEST,
        ErrorCode.BODY_TOO_DEEP,
        ErrorCode.UNSUPPORTED_MEDIA_TYPE,
        ErrorCode.ROUTE_NOT_FOUND,
        ErrorCode.METHOD_NOT_ALLOWED,
    }
)
"""What a request that follows the document never meets. Every other refusal depends on what is served, on tokens, on
limits, on what `Accept` names or on what was done before, which no schema can tell."""


KEPT_KEYS: set[str] = set()
"""Ids of the keys that a drill asks with. Hooks are the process's own, so what they need is too."""

NO_SUCH_KEY = "aaaaaaaaaaaa"


def readable(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document with bodies of many items spelled as schemathesis understands them."""
    read: dict[str, Any] = json.loads(json.dumps(document))
    for media_type, body, is_request in _bodies(read):
        if ITEMS in body:
            items = body.pop(ITEMS)
            del body["schema"]
            body |= {"schema": {"type": "array", "items": items}} if is_request else {"itemSchema": items}
            # The example is text; the items' own schema has better ones.
            body.pop("example", None)
        del media_type
    return read


def _bodies(document: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any], bool]]:
    for item in document["paths"].values():
        for operation in item.values():
            for media_type, body in operation.get("requestBody", {}).get("content", {}).items():
                yield media_type, body, True
            for answer in operation["responses"].values():
                for media_type, body in answer.get("content", {}).items():
                    yield media_type, body, False


@schemathesis.serializer("application/jsonl")
def write_lines(context: schemathesis.SerializationContext, value: Any) -> bytes:
    """A list of items as lines; what negative tests send in its place as it is."""
    del context
    if not isinstance(value, list):
        return value if isinstance(value, bytes) else json.dumps(value).encode()
    return b"".join(json.dumps(item).encode() + b"\n" for item in value)


def whole_numbers(value: Any) -> Any:
    """JSON Schema counts 7.0 among the integers; lensd's strict contracts do not, and no client writes it."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: whole_numbers(item) for key, item in value.items()}
    return [whole_numbers(item) for item in value] if isinstance(value, list) else value


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case, kwargs: dict[str, Any]) -> None:
    """Keep an administrator from revoking the drill's own keys, and integers from looking like fractions."""
    del context, kwargs
    if case.method != "GET" and (case.path_parameters or {}).get("key_id") in KEPT_KEYS:
        case.path_parameters["key_id"] = NO_SUCH_KEY
    if case.meta is not None and case.meta.generation.mode.is_positive:
        case.body = whole_numbers(case.body)


@schemathesis.hook
def filter_failure(
    context: schemathesis.HookContext, failure: Failure, case: schemathesis.Case, response: schemathesis.Response
) -> bool:
    """Whether a failure of a check tells of a fault of lensd."""
    del context, case
    if isinstance(failure, RejectedPositiveData):
        return bool(_codes(response) & PROMISED)
    return True


def _codes(response: schemathesis.Response) -> set[str]:
    """The codes of a problem: its own, or those of what is wrong in it."""
    problem = response.json()
    return {item["code"] for item in problem["errors"]} or {problem["code"]}
