"""Finding a job for the one who owns it."""

from typing import Annotated

from fastapi import Depends, Path, Request

from api.auth import Credentials, caller, require_scope
from api.dependencies import GatewayServices, Services
from api.violations import show
from services.contracts.errors import ErrorCode, NotFound
from services.jobs.ids import is_job_id
from services.jobs.record import JobRecord
from services.tenants.keys import ApiKey, Scope

JobId = Annotated[str, Path(examples=["job_abcdefghijklmnopqrstuvwxyz"])]


def find_job(services: GatewayServices, key: ApiKey, job_id: str) -> JobRecord:
    """The key owner's job; raises NotFound(JOB_NOT_FOUND) alike for one that is not there and for someone else's."""
    record = services.store.get(job_id) if is_job_id(job_id) else None
    if record is None or record.owner != key.owner:
        raise not_found(job_id)
    return record


def _own_job(request: Request, services: Services, credentials: Credentials, job_id: JobId) -> JobRecord:
    """Key and job are looked up in one go: a hop between threads costs as much as either."""
    key = caller(request, services, credentials)
    require_scope(key, Scope.READ)
    return find_job(services, key, job_id)


OwnJob = Annotated[JobRecord, Depends(_own_job)]
"""The job that the path names, for a key with the scope `read`."""


def not_found(job_id: str) -> NotFound:
    return NotFound(ErrorCode.JOB_NOT_FOUND, f"there is no job {show(job_id)}: it never was, or it has expired")
