"""What schemathesis is told about lensd: how to read its document, what to leave alone, which findings are none.

Nothing here names a route, but for the few reasons given with it: what is added to `openapi.yaml` is fuzzed by itself.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import urljoin

import httpx
import schemathesis
from pydantic import TypeAdapter
from schemathesis.core.failures import AcceptedNegativeData, Failure
from schemathesis.openapi.checks import RejectedPositiveData

from api.bodies import BodyParser
from api.documented import ITEM_SCHEMA
from api.openapi import REQUESTS, describe
from services.contracts.errors import ErrorCode, LensdError

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


OPAQUE = frozenset({"cursor"})
"""Parameters that only an earlier answer can name."""

_PARSERS = {contract.__name__: BodyParser(TypeAdapter(contract)) for contract in REQUESTS}

KEPT_KEYS: set[str] = set()
"""Ids of the keys that there were before the drill: an administrator could revoke them. Hooks are the process's own,
so what they need is too."""

NO_SUCH_KEY = "aaaaaaaaaaaa"


def readable(document: Mapping[str, Any], served: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The document as schemathesis gets furthest with it: bodies of many items spelled in its way, and fields that
    name a model or an SAE (`served`, by the fields' names) bound to those there are."""
    read: dict[str, Any] = json.loads(json.dumps(document))
    for schema in read["components"]["schemas"].values():
        for name, field in schema.get("properties", {}).items():
            if name in served and "pattern" in field:
                field["enum"] = list(served[name])
    for body, is_request in _bodies(read):
        if ITEM_SCHEMA in body:
            items = body.pop(ITEM_SCHEMA)
            del body["schema"]
            body.update(
                {"schema": {"type": "array", "items": items, "minItems": 1}} if is_request else {"itemSchema": items}
            )
            # The example is text; the items' own schema has better ones.
            body.pop("example", None)
    return read


def _bodies(document: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], bool]]:
    """Every body, and whether it is asked rather than answered."""
    for item in document["paths"].values():
        for operation in item.values():
            for body in operation.get("requestBody", {}).get("content", {}).values():
                yield body, True
            for answer in operation["responses"].values():
                for body in answer.get("content", {}).values():
                    yield body, False


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
def before_call(context: schemathesis.HookContext, case: schemathesis.Case[Any], kwargs: dict[str, Any]) -> None:
    """Keep the drill from revoking its own keys, and integers from looking like fractions."""
    del context, kwargs
    if case.method != "GET" and (case.path_parameters or {}).get("key_id") in KEPT_KEYS:
        case.path_parameters["key_id"] = NO_SUCH_KEY
    if case.meta is not None and case.meta.generation.mode.is_positive:
        case.body = whole_numbers(case.body)


@schemathesis.hook
def filter_failure(
    context: schemathesis.HookContext, failure: Failure, case: schemathesis.Case[Any], response: schemathesis.Response
) -> bool:
    """Whether a failure of a check tells of a fault of lensd."""
    del context
    if isinstance(failure, AcceptedNegativeData) and response.status_code == HTTPStatus.ACCEPTED:
        return not _refused_later(response)
    if not isinstance(failure, RejectedPositiveData):
        return True
    refused = [item for item in _items(response) if item["code"] in PROMISED and item.get("parameter") not in OPAQUE]
    return bool(refused) and not _keeps_the_contract(case, response)


def _refused_later(response: schemathesis.Response) -> bool:
    """Whether what was accepted to be validated is then found wrong: a batch tells of its lines by itself."""
    where = urljoin(response.request.url or "", response.headers["location"][0])
    key = str(response.request.headers["Authorization"])
    with httpx.Client(headers={"Authorization": key}) as client:
        for _ in range(100):
            found = client.get(where).json()
            if found["status"] != "validating":
                return bool(found["status"] == "failed")
            time.sleep(0.1)
    return False


def _items(response: schemathesis.Response) -> list[dict[str, str]]:
    """What is wrong by a problem: its items, or the problem itself."""
    problem: dict[str, Any] = response.json()
    return problem["errors"] or [problem]


def _keeps_the_contract(case: schemathesis.Case[Any], response: schemathesis.Response) -> bool:
    """Whether the body is one that its contract takes, so that it was refused for what it means: for fields that
    contradict each other, say."""
    bodies = describe()["paths"][case.operation.path][case.operation.method].get("requestBody", {}).get("content", {})
    for body in bodies.values():
        parser = _PARSERS[body.get(ITEM_SCHEMA, body["schema"])["$ref"].rsplit("/", 1)[1]]
        raw = response.request.body or b""
        assert isinstance(raw, bytes)
        try:
            for part in raw.splitlines() if ITEM_SCHEMA in body else [raw]:
                parser.parse(part)
        except LensdError:
            return False
    return bool(bodies)
