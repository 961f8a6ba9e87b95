"""The headers by which an answer says how its key stands, as `openapi.yaml` declares them (`api.auth` writes them).

draft-ietf-httpapi-ratelimit-headers: both are lists of items with parameters, of which lensd has one, "requests".
"""

from typing import Any

_HEADERS = {
    "RateLimit": (
        "`r` requests of this key are left, and all of them are again in `t` seconds.",
        r'^"requests";r=\d+;t=\d+$',
        '"requests";r=9998;t=1',
    ),
    "RateLimit-Policy": (
        "This key may make `q` requests in `w` seconds.",
        r'^"requests";q=\d+;w=\d+$',
        '"requests";q=10000;w=10',
    ),
}
_TOO_MANY = "429"
_NOT_OF_A_KEY = " Absent where it is the client's address that asks too often."


def declare_rates(document: dict[str, Any]) -> None:
    """Add them to every success of what needs a key, where they always are, and to its 429.

    Most other problems of a valid key carry them too, which the document's description says.
    """
    declared: dict[str, Any] = {}
    for name, (description, pattern, example) in _HEADERS.items():
        schema = {"type": "string", "pattern": pattern}
        declared[name] = {"description": description, "required": True, "schema": schema, "example": example}
        declared[f"{name}-If-Known"] = {
            "description": description + _NOT_OF_A_KEY,
            "required": False,
            "schema": schema,
            "example": example,
        }
    document["components"]["headers"] = declared
    operations = (operation for path in document["paths"].values() for operation in path.values())
    for operation in operations:
        if operation["security"]:
            for status, answer in operation["responses"].items():
                if status.startswith("2") or status == _TOO_MANY:
                    suffix = "-If-Known" if status == _TOO_MANY else ""
                    references = {name: {"$ref": f"#/components/headers/{name}{suffix}"} for name in _HEADERS}
                    answer["headers"] = answer.get("headers", {}) | references
