"""From a specification to a stored job: what every way of submitting one goes through."""

from api.answers import answered, with_entry
from api.dependencies import GatewayServices
from services.catalogue.resolve import resolve
from services.contracts.job import JobSpec
from services.jobs.ids import new_job_id
from services.jobs.record import Idempotency, JobRecord, NewJob
from services.tenants.keys import ApiKey


def admitted(spec: JobSpec, key: ApiKey, services: GatewayServices) -> NewJob:
    """The job that `spec` asks for, tokenised and estimated; raises InvalidSpec. It computes: call it in `read`."""
    owner_limits = services.tenants.jobs_of(key.limits)
    resolved = resolve(spec, services.catalogue_for(key), services.limits.within(owner_limits.daily_token_layers))
    return NewJob(
        id=new_job_id(),
        owner=key.owner,
        pool=services.pool,
        spec=spec,
        inputs=resolved.inputs,
        cost=resolved.cost.token_layers,
        limits=owner_limits,
    )


def submitted(job: NewJob, services: GatewayServices, reservation: Idempotency | None = None) -> JobRecord:
    """The job's record, or that of the job which the same request made before.

    It has ended when the result cache answers it. Raises what `JobStore.create` raises.
    """
    job = with_entry(job, services)
    record = answered(job, services, reservation) or services.store.create(job, reservation)
    if record.id == job.id and not record.status.terminal:
        services.doorbell.ring(job.pool)
    return record
