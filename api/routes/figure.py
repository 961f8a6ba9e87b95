"""A job's result as a picture."""

from typing import Annotated

from fastapi import APIRouter, Header, Query
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from api.auth import Reader
from api.dependencies import GatewayServices, Services
from api.documented import problems
from api.errors import InvalidParameters, ProblemItem
from api.lookup import JobId, find_job
from api.negotiation import choose
from api.representations import require_result
from services.contracts.errors import Refused
from services.jobs.record import JobRecord
from services.jobs.results import load_result

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

SVG = "image/svg+xml"
PNG = "image/png"
OFFERED = (SVG, PNG)

STYLED = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; sandbox"
"""The policy of an SVG: its colours are inline styles, its large heatmaps inline images, and it runs nothing."""

_FIGURE = {
    "description": "The picture that belongs to the result's kind, in the representation that `Accept` prefers.",
    "content": {
        SVG: {"schema": {"type": "string"}},
        PNG: {"schema": {"type": "string", "format": "binary"}},
    },
}

Example = Annotated[
    int | None,
    Query(
        ge=0,
        description="Draw this example, pair or prompt alone, counted from 0. Without it: the mean over all where the "
        "result has one, else the first.",
    ),
]


@router.get(
    "/{job_id}/figure",
    operation_id="get_job_figure",
    response_class=Response,
    responses={200: _FIGURE, **problems(404, 406, 409, 410, 422)},
)
async def get_job_figure(
    services: Services,
    key: Reader,
    job_id: JobId,
    example: Example = None,
    accept: Annotated[str | None, Header()] = None,
) -> Response:
    """The result of a job that has succeeded, drawn for print: heatmaps, ranked bars, patterns, coloured tokens."""
    record = await run_in_threadpool(find_job, services, key, job_id)
    media_type = choose(accept, OFFERED)
    require_result(record)
    picture = await services.draw(lambda: _drawn(services, record, media_type, example))
    headers = {"Vary": "Accept", "Content-Security-Policy": STYLED}
    return Response(picture, media_type=media_type, headers=headers)


def _drawn(services: GatewayServices, record: JobRecord, media_type: str, example: int | None) -> bytes:
    # Imported with the first picture: it takes longer than the rest of the gateway to start.
    from services.figures.draw import draw  # noqa: PLC0415

    try:
        return draw(load_result(record, services.blobs), media_type, example)
    except Refused as error:
        raise InvalidParameters((ProblemItem(parameter="example", code=error.code, message=error.message),)) from error
