"""The OpenAPI document, generated from the contracts and the routes: `python -m api.openapi` writes `openapi.yaml`.

Requests are described as they are validated (what has a default may be left out), answers as they are serialised (every
field is there). The two share no model but enumerations, so none is split in two. An answer may gain fields: only
requests refuse what they do not know.
"""

import argparse
import json
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import yaml
from fastapi import APIRouter
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter

from api.errors import Problem
from api.rate_headers import declare_rates
from api.routes import ROUTERS
from api.routes.features import FeatureList
from api.routes.keys import KeyRequest, RotationRequest
from api.routes.models import TokenizeRequest
from api.routes.webhooks import MESSAGES, WebhookRequest, WebhookRotationRequest
from services.contracts.batch import BatchLine, LineResult
from services.contracts.feature_card import FeatureCard
from services.contracts.job import JobResult, JobSpec, JobState, JobTokens, JobView
from services.contracts.label import LabelLine, LabelRequest
from services.contracts.webhook import BatchEnded, JobEnded

FILE = Path(__file__).parents[1] / "openapi.yaml"
DESCRIPTION = """\
Interpretability as an API: post a job, and lensd runs it on a cached language model and answers with numbers and
their provenance.

Every request under `/v1` carries an API key: `Authorization: Bearer lensd_<id>_<secret>`. Errors are problem details
(RFC 9457) with a stable `code` and, for a wrong body, a JSON pointer per violation.

Every answer to a valid key says in `RateLimit` how many requests are left (`r`) and in how many seconds all are there
again (`t`), and in `RateLimit-Policy` how many may be made (`q`) in how many seconds (`w`). Over a limit of the key or
its owner the status is 429, and `Retry-After` says when to come back.
"""
TAGS = [
    {"name": "jobs", "description": "Post a job, follow it, fetch its result."},
    {"name": "batches", "description": "Post thousands of jobs as one file, and fetch their results as one."},
    {"name": "models", "description": "The models that are served."},
    {"name": "saes", "description": "The sparse autoencoders that are served."},
    {"name": "features", "description": "What the features of an SAE are."},
    {"name": "webhooks", "description": "Be told when jobs and batches end."},
    {"name": "admin", "description": "Look after API keys: for keys with the scope `admin`."},
    {"name": "health", "description": "For load balancers and orchestrators; no key needed."},
]

REQUESTS: tuple[Any, ...] = (
    JobSpec,
    TokenizeRequest,
    LabelRequest,
    LabelLine,
    BatchLine,
    WebhookRequest,
    WebhookRotationRequest,
    KeyRequest,
    RotationRequest,
)
_ANSWERS: tuple[Any, ...] = (
    JobView,
    JobState,
    JobTokens,
    JobResult,
    LineResult,
    FeatureCard,
    FeatureList,
    JobEnded,
    BatchEnded,
    Problem,
)
"""Schemas of what routes write by themselves, which FastAPI therefore does not find."""


@cache
def describe() -> dict[str, Any]:
    """The whole document, as plain data."""
    routes = APIRouter()
    for router in ROUTERS:
        routes.include_router(router)
    document = get_openapi(
        title="lensd",
        version=version("lensd"),
        description=DESCRIPTION,
        routes=routes.routes,
        tags=TAGS,
        servers=[{"url": "/"}],
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    found: dict[str, Any] = document["components"]["schemas"]
    answers = found | _schemas(_ANSWERS, "serialization")
    requests = {name: _flat(_asked(schema)) for name, schema in _schemas(REQUESTS, "validation").items()}
    if split := {name for name in answers.keys() & requests.keys() if "properties" in answers[name]}:
        raise ValueError(f"{sorted(split)} are both asked and answered: give each its own model")
    schemas = {name: _answered(schema) for name, schema in answers.items()} | requests
    document["components"]["schemas"] = dict(sorted(schemas.items()))
    document["webhooks"] = dict(MESSAGES)
    declare_rates(document)
    return document


def render() -> str:
    """The document as `openapi.yaml` holds it."""
    return yaml.dump(describe(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def main() -> int:
    """Write the file, or with `--check` say whether it is stale."""
    parser = argparse.ArgumentParser(prog="python -m api.openapi", description="write openapi.yaml")
    parser.add_argument("--check", action="store_true", help="only fail when the file is stale")
    if not parser.parse_args().check:
        FILE.write_text(render(), encoding="utf-8")
    elif FILE.read_text(encoding="utf-8") != render():
        print("openapi.yaml is stale: run `make openapi`", file=sys.stderr)
        return 1
    return 0


def _schemas(contracts: tuple[Any, ...], mode: Literal["validation", "serialization"]) -> dict[str, Any]:
    inputs = [(index, mode, TypeAdapter(contract)) for index, contract in enumerate(contracts)]
    _, document = TypeAdapter.json_schemas(inputs, ref_template="#/components/schemas/{model}")
    schemas: dict[str, Any] = document["$defs"]
    return schemas


def _asked(schema: dict[str, Any]) -> dict[str, Any]:
    """An object of a request: the tag that tells it from others is always needed, whatever Python's default."""
    if "properties" not in schema:
        return schema
    properties = {name: _worded(field) for name, field in schema["properties"].items()}
    tags = [name for name, field in properties.items() if "const" in field]
    required = [*schema.get("required", ()), *tags]
    return {**schema, "properties": properties, "required": list(dict.fromkeys(required))}


def _worded(field: dict[str, Any]) -> dict[str, Any]:
    """A default that is an object is told in words: generators of clients refuse it, and drop the whole model."""
    default = field.get("default")
    if not isinstance(default, dict):
        return field
    told = (field.get("description"), f"Default: {json.dumps(default)}." if default else None)
    kept = {key: value for key, value in field.items() if key != "default"}
    return {**kept, "description": " ".join(filter(None, told))} if any(told) else kept


def _flat(node: Any) -> Any:
    """Unions of unions as one union: validators that know discriminators find a text in both halves of a nested one."""
    if isinstance(node, list):
        return [_flat(item) for item in node]
    if not isinstance(node, dict):
        return node
    flat = {key: _flat(value) for key, value in node.items()}
    if "patternProperties" in flat:
        # Pydantic leaves the names that do not match open, and generators of clients know no patterns.
        ((pattern, value),) = flat.pop("patternProperties").items()
        names = {**flat.get("propertyNames", {}), "pattern": pattern}
        flat |= {"propertyNames": names, "additionalProperties": value}
    if "oneOf" in flat and "discriminator" not in flat:
        flat["oneOf"] = [leaf for branch in flat["oneOf"] for leaf in branch.get("oneOf", (branch,))]
    return flat


def _answered(schema: dict[str, Any]) -> dict[str, Any]:
    """An object of an answer: every field is there, also those with defaults, and more may come."""
    if "properties" not in schema:
        return schema
    properties = {
        name: {key: value for key, value in field.items() if key != "default"}
        for name, field in schema["properties"].items()
    }
    kept = {key: value for key, value in schema.items() if key != "additionalProperties"}
    return {**kept, "properties": properties, "required": list(properties)}


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as such."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


if __name__ == "__main__":
    sys.exit(main())
