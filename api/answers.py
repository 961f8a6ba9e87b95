"""Answering a job with the result of an earlier one."""

from api.dependencies import GatewayServices
from services.contracts.errors import NotFound, Unavailable
from services.jobs.cache import entry_name, fingerprint, question
from services.jobs.record import Idempotency, JobRecord, NewJob
from services.jobs.results import copy_result


def with_entry(job: NewJob, services: GatewayServices) -> NewJob:
    """The job with the name of its entry in the result cache.

    It has none when it wants none, or when nobody can say what would compute it: no worker lives, or two differ.
    """
    if not job.spec.cache:
        return job
    runner = services.runner.said()
    if runner is None:
        return job
    sae_id = job.spec.sae_id()
    sae = None if sae_id is None else services.catalogue.sae(sae_id)
    computation = fingerprint(runner, services.catalogue.model(job.spec.model), sae)
    entry = entry_name(question(job, shared=services.share_results), computation)
    return job.model_copy(update={"ties": job.ties.model_copy(update={"cache_entry": entry})})


def answered(job: NewJob, services: GatewayServices, reservation: Idempotency | None) -> JobRecord | None:
    """The job, ended with a copy of the result that its entry leads to; None when it is to run.

    Copies that come to nothing are blobs without a record: the sweep has them. Raises Conflict, Unavailable.
    """
    if job.ties.cache_entry is None:
        return None
    source = services.results.find(job, reservation)
    if source is None:
        return None
    try:
        result = copy_result(services.blobs, source, job.id)
    except (NotFound, Unavailable):
        return None
    return services.results.answer(job, source, result, reservation)
