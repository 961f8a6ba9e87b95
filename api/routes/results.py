"""A job's result: as JSON, as a file of tensors, or one tensor at a time."""

from typing import Annotated

from fastapi import APIRouter, Header, Path
from starlette.responses import Response

from api.auth import Reader
from api.dependencies import Services
from api.documented import body, problems
from api.lookup import JobId, find_job
from api.negotiation import choose
from api.representations import NPZ, OFFERED, SAFETENSORS, require_result, result_as
from services.jobs.results import load_tensor

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_RESULT = body("JobResult", "The result, in the representation that `Accept` prefers.")
_RESULT["content"] |= {SAFETENSORS: _BINARY, NPZ: _BINARY}


@router.get(
    "/{job_id}/result",
    operation_id="get_job_result",
    response_class=Response,
    responses={200: _RESULT, **problems(404, 406, 409, 410, 422)},
)
def get_job_result(
    services: Services, key: Reader, job_id: JobId, accept: Annotated[str | None, Header()] = None
) -> Response:
    """The result of a job that has succeeded; as safetensors or npz it holds every tensor under its path."""
    record = find_job(services, key, job_id)
    media_type = choose(accept, OFFERED)
    require_result(record)
    result = result_as(media_type, record, services.blobs)
    return Response(result, media_type=media_type, headers={"Vary": "Accept"})


@router.get(
    "/{job_id}/tensors/{name}",
    operation_id="get_job_tensor",
    response_class=Response,
    responses={
        200: {"description": "The tensor's bytes.", "content": {"application/octet-stream": _BINARY}},
        **problems(404, 409, 410, 422),
    },
)
def get_job_tensor(
    services: Services, key: Reader, job_id: JobId, name: Annotated[str, Path(max_length=200, examples=["effects"])]
) -> Response:
    """One tensor that the result refers to by `href`: little-endian float32 in row-major order."""
    record = find_job(services, key, job_id)
    require_result(record)
    return Response(load_tensor(record, services.blobs, name), media_type="application/octet-stream")
