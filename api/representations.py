"""A job's result as JSON, or as every tensor by name in safetensors or npz.

A tensor's name is its path in the result, joined with dots: `effects`, `pairs.0.effects`, `effects.standard_error`.
"""

import io
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt
import orjson
from safetensors.numpy import load, save

from services.contracts.errors import Conflict, ErrorCode, LensdError
from services.contracts.job import JobStatus
from services.jobs.ports import Blobs
from services.jobs.record import JobRecord, StoredResult

JSON = "application/json"
SAFETENSORS = "application/vnd.safetensors"
NPZ = "application/x-npz"
OFFERED = (JSON, SAFETENSORS, NPZ)

FloatArray = npt.NDArray[np.float32]


def job_json(record: JobRecord, blobs: Blobs) -> bytes:
    """The JobView of `record`; its result is null also when its blob is lost, which `/result` then says."""
    document = None if record.result is None else _document(record.result, blobs)
    result = None if document is None else orjson.Fragment(document)
    return orjson.dumps({**record.summary().model_dump(mode="json"), "result": result})


def represent(record: JobRecord, blobs: Blobs, media_type: str) -> bytes:
    """The result of `record` as `media_type`; raises Conflict, or LensdError(RESULT_LOST)."""
    stored = _finished(record)
    document = _document(stored, blobs)
    if document is None:
        raise lost(record)
    if media_type == JSON:
        return document
    tensors = dict(_tensors(orjson.loads(document), _external(stored, record, blobs)))
    return save(tensors) if media_type == SAFETENSORS else _npz(tensors)


def tensor_bytes(record: JobRecord, blobs: Blobs, name: str) -> bytes | None:
    """Little-endian float32 in row-major order of the tensor called `name`; None if there is none."""
    stored = _finished(record)
    document = _document(stored, blobs)
    if document is None:
        raise lost(record)
    tensors = dict(_tensors(orjson.loads(document), _external(stored, record, blobs)))
    return tensors[name].astype("<f4").tobytes() if name in tensors else None


def lost(record: JobRecord) -> LensdError:
    return LensdError(ErrorCode.RESULT_LOST, f"the result of {record.id} is lost: send the job again")


def _finished(record: JobRecord) -> StoredResult:
    if not record.status.terminal:
        message = f"{record.id} is {record.status}: its result is there once it has succeeded"
        raise Conflict(ErrorCode.JOB_UNFINISHED, message)
    if record.result is None or record.status is not JobStatus.SUCCEEDED:
        raise Conflict(ErrorCode.JOB_WITHOUT_RESULT, f"{record.id} {_ended(record)}: it has no result")
    return record.result


def _ended(record: JobRecord) -> str:
    return f"failed ({record.error.code})" if record.error else f"was {record.status}"


def _document(stored: StoredResult, blobs: Blobs) -> bytes | None:
    if stored.document is not None:
        return stored.document.encode()
    return None if stored.document_blob is None else blobs.get(stored.document_blob)


def _external(stored: StoredResult, record: JobRecord, blobs: Blobs) -> Mapping[str, FloatArray]:
    if stored.tensors_blob is None:
        return {}
    data = blobs.get(stored.tensors_blob)
    if data is None:
        raise lost(record)
    return load(data)


def _tensors(node: Any, external: Mapping[str, FloatArray], path: str = "") -> Iterator[tuple[str, FloatArray]]:
    if isinstance(node, list):
        for index, item in enumerate(node):
            yield from _tensors(item, external, f"{path}.{index}" if path else str(index))
    elif isinstance(node, dict):
        match node.get("encoding"):
            case "inline":
                yield path, np.array(node["values"], dtype=np.float32).reshape(node["shape"])
            case "external":
                yield path, external[unquote(node["href"].rsplit("/", 1)[1])]
            case _:
                for name, item in node.items():
                    yield from _tensors(item, external, f"{path}.{name}" if path else name)


def _npz(tensors: Mapping[str, FloatArray]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **tensors)  # type: ignore[arg-type]  # numpy's stub takes the names for its own parameter
    return file.getvalue()
