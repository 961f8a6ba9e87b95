"""A job and its result as the client asked for them: JSON, or every tensor by name in safetensors or npz."""

import io
from collections.abc import Mapping

import numpy as np
import orjson
from safetensors.numpy import save

from services.contracts.errors import Conflict, ErrorCode, NotFound
from services.contracts.tensor import FloatArray
from services.jobs.ports import Blobs
from services.jobs.record import JobRecord
from services.jobs.results import load_document, load_tensors

JSON = "application/json"
SAFETENSORS = "application/vnd.safetensors"
NPZ = "application/x-npz"
OFFERED = (JSON, SAFETENSORS, NPZ)


def job_json(record: JobRecord, blobs: Blobs, queued_ahead: int | None = None) -> bytes:
    """The JobView of `record`; its result is null also when its blob is lost, which `/result` then says."""
    try:
        result = None if record.result is None else orjson.Fragment(load_document(record, blobs))
    except NotFound:
        result = None
    summary = record.summary().model_dump(mode="json")
    return orjson.dumps({**summary, "queued_ahead": queued_ahead, "result": result})


def result_as(media_type: str, record: JobRecord, blobs: Blobs) -> bytes:
    """The result as one of `OFFERED`. Raises as `load_document`."""
    if media_type == JSON:
        return load_document(record, blobs)
    tensors = load_tensors(record, blobs)
    return save(tensors) if media_type == SAFETENSORS else _npz(tensors)


def require_result(record: JobRecord) -> None:
    """Raises Conflict(JOB_UNFINISHED | JOB_WITHOUT_RESULT)."""
    if not record.status.terminal:
        message = f"{record.id} is {record.status}: its result is there once it has succeeded"
        raise Conflict(ErrorCode.JOB_UNFINISHED, message)
    if record.result is None:
        ended = f"failed ({record.error.code})" if record.error else f"was {record.status}"
        raise Conflict(ErrorCode.JOB_WITHOUT_RESULT, f"{record.id} {ended}: it has no result")


def _npz(tensors: Mapping[str, FloatArray]) -> bytes:
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **tensors)
    return file.getvalue()
