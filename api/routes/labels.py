"""Labels of features: what people and programs say that a feature is."""

from datetime import UTC, datetime
from typing import Annotated

import orjson
from fastapi import APIRouter, Path, Query, Request
from pydantic import TypeAdapter
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from api.auth import Reader, Submitter, require_admin
from api.bodies import BodyParser
from api.dependencies import GatewayServices, Services
from api.documented import content, lines_body, problems, request_body
from api.limits import LINES
from api.lines import InvalidLines, Numbered, at_line, parse_lines
from api.routes.saes import SaeId
from services.contracts.errors import ErrorCode, NotFound
from services.contracts.feature_card import FeatureLabel
from services.contracts.label import LabelImport, LabelLine, LabelRequest
from services.contracts.sae import SaeFacts
from services.labels.store import Labelled
from services.logs import request_id
from services.tenants.audit import AuditAction, AuditEvent, put_on_record
from services.tenants.keys import ApiKey

router = APIRouter(prefix="/v1/saes", tags=["features"])

MAX_LINES = 50_000

FeatureNumber = Annotated[int, Path(ge=-10_000_000, le=10_000_000, examples=[0])]
Shared = Annotated[bool, Query(description="The operator's shared label instead of the own one.")]

_LABEL = {"text": "capitals of European countries", "author": "ada", "method": "manual"}
_EXAMPLE = orjson.dumps({"index": 0, **_LABEL}).decode() + "\n"

_label_body = BodyParser(TypeAdapter(LabelRequest))
_line_body = BodyParser(TypeAdapter(LabelLine))


@router.put(
    "/{sae_id}/features/{index}/label",
    operation_id="set_feature_label",
    responses=problems(400, 404, 409, 413, 415, 422),
    openapi_extra=request_body("LabelRequest", {"label": _LABEL}),
)
async def set_feature_label(
    request: Request, services: Services, key: Submitter, sae_id: SaeId, index: FeatureNumber
) -> FeatureLabel:
    """Say what a feature is, for the caller's tenant; with `shared`, which needs the scope `admin`, for every tenant.

    It takes the place of the earlier label of the same tenant (or of the earlier shared one).
    """
    require_feature(services.catalogue_for(key).sae(sae_id), index)
    raw = await request.body()
    label = await services.read(lambda: _checked(services, key, sae_id, _label_body.parse(raw), datetime.now(UTC)))
    await run_in_threadpool(_put, services, key, sae_id, [Labelled(index, label)])
    return label


@router.delete(
    "/{sae_id}/features/{index}/label",
    operation_id="delete_feature_label",
    status_code=204,
    responses=problems(404, 422),
)
def delete_feature_label(
    services: Services, key: Submitter, sae_id: SaeId, index: FeatureNumber, shared: Shared = False
) -> None:
    """Forget the caller's label of a feature; with `shared`, which needs the scope `admin`, the operator's."""
    require_feature(services.catalogue_for(key).sae(sae_id), index)
    if shared:
        require_admin(services, key, sae_id)
    if not services.labels.delete(key.owner, sae_id, index, shared=shared):
        whose = "no shared label" if shared else "no label of yours"
        raise NotFound(ErrorCode.LABEL_NOT_FOUND, f"feature {index} of {sae_id} has {whose}")
    if shared:
        _record(services, key, AuditAction.SHARED_LABEL_DELETED, sae_id, {"feature": str(index)})


@router.post(
    "/{sae_id}/labels",
    operation_id="import_labels",
    responses=problems(400, 404, 409, 413, 415, 422),
    openapi_extra=lines_body("LabelLine", _EXAMPLE),
)
async def import_labels(request: Request, services: Services, key: Submitter, sae_id: SaeId) -> LabelImport:
    """Set up to 50,000 labels at once, one a line: all of them, or none if any line is wrong or a bound is passed.

    After a 503 they may be stored, all or none: sending them again is harmless. `shared` needs the scope `admin`.
    """
    facts = services.catalogue_for(key).sae(sae_id)
    raw = await request.body()
    labels = await services.read(lambda: _read(services, raw, key, facts))
    await run_in_threadpool(_put, services, key, sae_id, labels)
    return LabelImport(stored=len(labels), shared=sum(item.label.shared for item in labels))


@router.get(
    "/{sae_id}/labels",
    operation_id="export_labels",
    response_class=Response,
    responses={
        200: content(LINES, {"type": "string", "format": "binary"}, "A LabelLine for each label, by feature."),
        **problems(404, 422),
    },
)
def export_labels(services: Services, key: Reader, sae_id: SaeId) -> Response:
    """Every label that the caller sees, the own and the shared ones, as lines that an import takes."""
    services.catalogue_for(key).sae(sae_id)
    return Response(_lines(services, key, sae_id), media_type=LINES)


def require_feature(facts: SaeFacts, index: int) -> None:
    """Raises NotFound(UNKNOWN_FEATURE) for a feature that the SAE does not have."""
    if not 0 <= index < facts.features:
        message = f"feature {index} does not exist: {facts.id} has features 0..{facts.features - 1}"
        raise NotFound(ErrorCode.UNKNOWN_FEATURE, message)


def _put(services: GatewayServices, key: ApiKey, sae_id: str, labels: list[Labelled]) -> None:
    """Stores the labels; what every tenant sees from now on is put on record."""
    services.labels.put(key.owner, sae_id, labels)
    shared = sum(item.label.shared for item in labels)
    if shared:
        _record(services, key, AuditAction.LABELS_SHARED, sae_id, {"labels": str(shared)})


def _record(services: GatewayServices, key: ApiKey, action: AuditAction, sae_id: str, details: dict[str, str]) -> None:
    event = AuditEvent(action=action, actor=key.id, target=sae_id, details=details, request_id=request_id.get())
    put_on_record(services.audit, event)


def _checked(services: GatewayServices, key: ApiKey, sae_id: str, asked: LabelRequest, now: datetime) -> FeatureLabel:
    if asked.shared:
        require_admin(services, key, sae_id)
    return FeatureLabel(text=asked.text, author=asked.author, method=asked.method, shared=asked.shared, updated_at=now)


def _read(services: GatewayServices, raw: bytes, key: ApiKey, facts: SaeFacts) -> list[Labelled]:
    """The labels of an import; raises InvalidSpec with every wrong line, Refused(FORBIDDEN) for shared ones."""
    lines = parse_lines(_line_body, raw, MAX_LINES)
    _refuse_impossible(lines, facts)
    now = datetime.now(UTC)
    return [Labelled(line.value.index, _checked(services, key, facts.id, line.value, now)) for line in lines]


def _refuse_impossible(lines: list[Numbered[LabelLine]], facts: SaeFacts) -> None:
    """Features that the SAE does not have, and features labelled twice."""
    first: dict[tuple[int, bool], int] = {}
    violations = []
    for line in lines:
        index, shared = line.value.index, line.value.shared
        if index >= facts.features:
            message = f"feature {index} does not exist: {facts.id} has features 0..{facts.features - 1}"
            violations.append(at_line(line.number, "/index", ErrorCode.UNKNOWN_FEATURE, message))
        elif (earlier := first.setdefault((index, shared), line.number)) != line.number:
            message = f"feature {index} has a label in line {earlier} already"
            violations.append(at_line(line.number, "/index", ErrorCode.INVALID_REQUEST, message))
    if violations:
        wrong = [int(violation.pointer.split("/")[1]) + 1 for violation in violations]
        raise InvalidLines(violations, wrong, len(lines))


def _lines(services: GatewayServices, key: ApiKey, sae_id: str) -> bytes:
    return b"".join(
        orjson.dumps({"index": item.index, **item.label.model_dump(exclude={"updated_at"})}) + b"\n"
        for item in services.labels.every(key.owner, sae_id)
    )
