"""From a method's result to what is kept of it, and back.

1. Tensors over 64 KB of raw bytes, and those that would make the inline ones exceed 1 MB together, become external:
   their bytes go into one safetensors blob, under their names.
2. A tensor's name is its dotted path in the result: `effects`, `pairs.0.effects.mean`.
3. The rest is JSON, in the record when it is small (or of a middling size, and the store has room), else in a blob of
   its own. float32 values are written with the
   fewest digits that read back as the same float32; what is not finite is null.
"""

import hashlib
import struct
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import orjson
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.numpy import load, save

from services.contracts.errors import Conflict, ErrorCode, NotFound
from services.contracts.job import JobResult
from services.contracts.tensor import FloatArray
from services.jobs.ids import new_blob_key
from services.jobs.ports import Blobs
from services.jobs.record import JobRecord, StoredResult

MAX_INLINE_TENSOR_BYTES = 64 * 1024
MAX_INLINE_BYTES = 1024 * 1024
MAX_RECORD_DOCUMENT_BYTES = 4 * 1024
MAX_ROOMY_DOCUMENT_BYTES = 64 * 1024

_Node = dict[str, Any]
_RESULT: TypeAdapter[JobResult] = TypeAdapter(JobResult)


def store_result(blobs: Blobs, job_id: str, attempt: int, result: JobResult, *, roomy: bool = False) -> StoredResult:
    """Write the blobs that the result needs; to be called before the job is finished. Raises Unavailable.

    `roomy`: the store of records has room for more than the smallest results.
    """
    document = result.model_dump()
    external: dict[str, FloatArray] = {}
    inline_bytes = 0
    for name, node in _tensors(document):
        values: FloatArray = node["values"]
        if values.nbytes > MAX_INLINE_TENSOR_BYTES or inline_bytes + values.nbytes > MAX_INLINE_BYTES:
            external[name] = values.reshape(node["shape"])
            _make_external(node, href=f"/v1/jobs/{job_id}/tensors/{name}")
        else:
            inline_bytes += values.nbytes
    text = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    fits = len(text) <= (MAX_ROOMY_DOCUMENT_BYTES if roomy else MAX_RECORD_DOCUMENT_BYTES)
    return StoredResult(
        document=text.decode() if fits else None,
        document_blob=None if fits else _put(blobs, job_id, attempt, text),
        tensors_blob=_put(blobs, job_id, attempt, save(external)) if external else None,
    )


def copy_result(blobs: Blobs, source: JobRecord, job_id: str) -> StoredResult:
    """The result of `source` again, as that of `job_id`. Raises as `load_document`."""
    stored, document = _stored(source), load_document(source, blobs)
    if stored.tensors_blob is not None:
        # An id cannot be guessed, so the document has this one in its hrefs alone.
        document = document.replace(source.id.encode(), job_id.encode())
    in_record = stored.document is not None
    return StoredResult(
        document=document.decode() if in_record else None,
        document_blob=None if in_record else _put(blobs, job_id, 0, document),
        tensors_blob=None
        if stored.tensors_blob is None
        else _put(blobs, job_id, 0, _get(blobs, source, stored.tensors_blob)),
    )


def load_document(record: JobRecord, blobs: Blobs) -> bytes:
    """The result as JSON. Raises Conflict(JOB_WITHOUT_RESULT), NotFound(RESULT_LOST), Unavailable."""
    stored = _stored(record)
    if stored.document is not None:
        return stored.document.encode()
    return _get(blobs, record, stored.document_blob)


def load_tensors(record: JobRecord, blobs: Blobs) -> dict[str, FloatArray]:
    """Every tensor of the result in its shape, inline or external, by name. Raises as `load_document`."""
    external = _external(record, blobs)
    return {
        name: external[name] if node["encoding"] == "external" else _inline(node)
        for name, node in _tensors(orjson.loads(load_document(record, blobs)))
    }


def load_result(record: JobRecord, blobs: Blobs) -> JobResult:
    """The result with every tensor inline. Raises as `load_document`."""
    document = orjson.loads(load_document(record, blobs))
    external = _external(record, blobs)
    for name, node in list(_tensors(document)):
        if node["encoding"] == "external":
            for field in ("href", "nbytes", "sha256"):
                del node[field]
            node |= {"encoding": "inline", "values": external[name]}
    return _RESULT.validate_python(document)


def load_tensor(record: JobRecord, blobs: Blobs, name: str) -> bytes:
    """An external tensor's bytes, little-endian and row-major. Raises NotFound(TENSOR_NOT_FOUND), or as above."""
    key = _stored(record).tensors_blob
    if key is None:
        raise _no_tensor(record, name)
    # A safetensors file: the header's length, the header as JSON, then the tensors one after another.
    (header_bytes,) = struct.unpack("<Q", _read(blobs, record, key, 0, 8))
    header = orjson.loads(_read(blobs, record, key, 8, header_bytes))
    if name not in header or name == "__metadata__":
        raise _no_tensor(record, name)
    start, end = header[name]["data_offsets"]
    return _read(blobs, record, key, 8 + header_bytes + start, end - start)


def _tensors(node: Any, path: str = "") -> Iterator[tuple[str, _Node]]:
    """The tensors below `node`, in the order of the document."""
    if isinstance(node, dict) and node.get("encoding") in ("inline", "external"):
        yield path, node
        return
    children: Iterable[tuple[Any, Any]] = ()
    if isinstance(node, dict):
        children = node.items()
    elif isinstance(node, list | tuple):
        children = enumerate(node)
    for key, child in children:
        yield from _tensors(child, f"{path}.{key}" if path else str(key))


def _make_external(node: _Node, href: str) -> None:
    data = node.pop("values").tobytes()
    node |= {"encoding": "external", "href": href, "nbytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _external(record: JobRecord, blobs: Blobs) -> dict[str, FloatArray]:
    stored = _stored(record)
    try:
        return load(_get(blobs, record, stored.tensors_blob)) if stored.tensors_blob else {}
    except SafetensorError as error:
        raise _lost(record) from error


def _inline(node: _Node) -> FloatArray:
    values = [np.nan if value is None else value for value in node["values"]]
    return np.array(values, dtype=np.float32).reshape(node["shape"])


def _stored(record: JobRecord) -> StoredResult:
    if record.result is None:
        raise Conflict(ErrorCode.JOB_WITHOUT_RESULT, f"{record.id} is {record.status}: it has no result")
    return record.result


def _put(blobs: Blobs, job_id: str, attempt: int, data: bytes) -> str:
    key = new_blob_key(job_id, attempt)
    blobs.put(key, data)
    return key


def _get(blobs: Blobs, record: JobRecord, key: str | None) -> bytes:
    data = None if key is None else blobs.get(key)
    if data is None:
        raise _lost(record)
    return data


def _read(blobs: Blobs, record: JobRecord, key: str, offset: int, nbytes: int) -> bytes:
    data = blobs.read(key, offset, nbytes)
    if data is None or len(data) < nbytes:
        raise _lost(record)
    return data


def _lost(record: JobRecord) -> NotFound:
    return NotFound(
        ErrorCode.RESULT_LOST, f"the result of {record.id} is no longer in the store of results: run it again"
    )


def _no_tensor(record: JobRecord, name: str) -> NotFound:
    message = f"{record.id} has no external tensor {name!r}: those it has are in its result, with their href"
    return NotFound(ErrorCode.TENSOR_NOT_FOUND, message)
