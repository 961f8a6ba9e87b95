"""Webhooks: endpoints of the caller's that are told when jobs end."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from pydantic import Field, TypeAdapter
from starlette.concurrency import run_in_threadpool

from api.auth import Reader, Submitter
from api.bodies import BodyParser
from api.dependencies import GatewayServices, Services
from api.documented import problems, request_body
from api.violations import show
from services.contracts.base import Contract, WebhookId
from services.contracts.base import Request as RequestContract
from services.contracts.errors import ErrorCode, NotFound
from services.contracts.webhook import DeliveryOutcome
from services.tenants.keys import ApiKey
from services.webhooks.endpoint import MAX_OVERLAP_S, Endpoint, is_endpoint_id, new_endpoint_id, new_secret
from services.webhooks.store import KEPT_OUTCOMES
from services.webhooks.urls import MAX_URL_CHARACTERS

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"])

WebhookPath = Annotated[str, Path(max_length=64, examples=["wh_abcdefghijklmnopqrstuvwxyz"])]
DAY_S = 86_400


class WebhookRequest(RequestContract):
    """An endpoint to register: https on port 443, at a public address."""

    url: Annotated[str, Field(max_length=MAX_URL_CHARACTERS)]
    description: Annotated[str | None, Field(max_length=200)] = None


class WebhookRotationRequest(RequestContract):
    """How long messages are signed with the present secret beside the fresh one."""

    overlap_s: Annotated[int, Field(ge=0, le=MAX_OVERLAP_S)] = DAY_S


class Webhook(Contract):
    """An endpoint without its secret. A job that names it as `webhook` tells it of its end."""

    id: WebhookId
    url: str
    description: str | None
    created_at: datetime
    retiring_until: Annotated[
        datetime | None, Field(description="Until when the secret before the last rotation signs as well, if it does.")
    ]
    disabled_at: Annotated[
        datetime | None, Field(description="Since when nothing is sent to it, because it answered 410.")
    ]


class FreshWebhook(Webhook):
    """An endpoint with its secret, which is never shown again."""

    secret: Annotated[str, Field(description="Checks the signatures of the messages.", examples=["whsec_<base64>"])]


class WebhookDetails(Webhook):
    """An endpoint and how its latest deliveries went."""

    deliveries: Annotated[
        tuple[DeliveryOutcome, ...], Field(description=f"One for each try, newest first, at most {KEPT_OUTCOMES}.")
    ]


class WebhookList(Contract):
    """The caller's endpoints, oldest first."""

    webhooks: tuple[Webhook, ...]


_EXAMPLES = {"pipeline": {"url": "https://hooks.example.com/lensd", "description": "nightly evaluations"}}
_ROTATION_EXAMPLES = {"one_day": {"overlap_s": DAY_S}}

_HEADERS = {
    "webhook-id": "The message's name, the same at every try.",
    "webhook-timestamp": "When this try was made, in seconds since 1970.",
    "webhook-signature": "`v1,` and the base64 of HMAC-SHA256 over `{id}.{timestamp}.{body}`; one for each secret that "
    "is good, with spaces between them.",
}


def _message(name: str, schema: str, summary: str, description: str) -> Mapping[str, Any]:
    return {
        "post": {
            "operationId": name,
            "tags": ["webhooks"],
            "summary": summary,
            "description": description,
            "security": [],
            "parameters": [
                {"name": header, "in": "header", "required": True, "description": text, "schema": {"type": "string"}}
                for header, text in _HEADERS.items()
            ],
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}},
            },
            "responses": {"2XX": {"description": "Taken."}, "410": {"description": "Gone: send nothing any more."}},
        }
    }


_SENT = "What lensd posts to the endpoint that a {} named as `webhook`, at least once."
MESSAGES: Mapping[str, Any] = {
    "job_ended": _message("job_ended", "JobEnded", "A job has ended", _SENT.format("job")),
    "batch_ended": _message("batch_ended", "BatchEnded", "A batch has ended", _SENT.format("batch")),
}
"""What is sent, for the document."""

_body = BodyParser(TypeAdapter(WebhookRequest))
_rotation_body = BodyParser(TypeAdapter(WebhookRotationRequest))


@router.post(
    "",
    operation_id="create_webhook",
    status_code=201,
    responses=problems(400, 409, 413, 415, 422),
    openapi_extra=request_body("WebhookRequest", _EXAMPLES),
)
async def create_webhook(request: Request, services: Services, key: Submitter) -> FreshWebhook:
    """Register an endpoint. The answer is the only place that shows its secret."""
    raw = await request.body()

    def make() -> FreshWebhook:
        asked = _body.parse(raw)
        services.webhook_urls.read(asked.url)
        endpoint = Endpoint(
            id=new_endpoint_id(),
            owner=key.owner,
            url=asked.url,
            description=asked.description,
            secret=new_secret(),
            created_at=datetime.now(UTC),
        )
        services.webhooks.create(endpoint)
        return FreshWebhook(**_shown(endpoint), secret=endpoint.secret)

    return await services.read(make)


@router.get("", operation_id="list_webhooks", responses=problems())
def list_webhooks(services: Services, key: Reader) -> WebhookList:
    """The caller's endpoints, without their secrets."""
    return WebhookList(webhooks=tuple(Webhook(**_shown(each)) for each in services.webhooks.list(key.owner)))


@router.get("/{webhook_id}", operation_id="get_webhook", responses=problems(404, 422))
def get_webhook(services: Services, key: Reader, webhook_id: WebhookPath) -> WebhookDetails:
    """An endpoint, and how its latest deliveries went."""
    endpoint = _find(services, key, webhook_id)
    return WebhookDetails(**_shown(endpoint), deliveries=tuple(services.webhooks.outcomes(webhook_id)))


@router.post(
    "/{webhook_id}/rotate",
    operation_id="rotate_webhook_secret",
    responses=problems(400, 404, 413, 415, 422),
    openapi_extra=request_body("WebhookRotationRequest", _ROTATION_EXAMPLES),
)
async def rotate_webhook_secret(
    request: Request, services: Services, key: Submitter, webhook_id: WebhookPath
) -> FreshWebhook:
    """Give an endpoint a fresh secret. For `overlap_s` seconds messages carry a signature with either."""
    await run_in_threadpool(_find, services, key, webhook_id)
    raw = await request.body()

    def rotate() -> FreshWebhook:
        overlap_s = _rotation_body.parse(raw).overlap_s
        secret = new_secret()
        until = datetime.now(UTC) + timedelta(seconds=overlap_s) if overlap_s else None
        if not services.webhooks.rotate(webhook_id, secret, until):
            raise _not_found(webhook_id)
        return FreshWebhook(**_shown(_find(services, key, webhook_id)), secret=secret)

    return await services.read(rotate)


@router.delete("/{webhook_id}", operation_id="delete_webhook", status_code=204, responses=problems(404, 422))
def delete_webhook(services: Services, key: Submitter, webhook_id: WebhookPath) -> None:
    """Forget an endpoint: nothing more is sent to it, nor what is waiting to be."""
    _find(services, key, webhook_id)
    if not services.webhooks.delete(webhook_id):
        raise _not_found(webhook_id)


def _find(services: GatewayServices, key: ApiKey, webhook_id: str) -> Endpoint:
    """Raises NotFound(UNKNOWN_WEBHOOK) alike for one that is not there and for someone else's."""
    endpoint = services.webhooks.get(webhook_id) if is_endpoint_id(webhook_id) else None
    if endpoint is None or endpoint.owner != key.owner:
        raise _not_found(webhook_id)
    return endpoint


def _not_found(webhook_id: str) -> NotFound:
    return NotFound(ErrorCode.UNKNOWN_WEBHOOK, f"there is no webhook {show(webhook_id)}")


def _shown(endpoint: Endpoint) -> Mapping[str, Any]:
    until = None if endpoint.retiring is None else endpoint.retiring.until
    shared = {name: getattr(endpoint, name) for name in ("id", "url", "description", "created_at", "disabled_at")}
    return {**shared, "retiring_until": until if until is not None and until > datetime.now(UTC) else None}
