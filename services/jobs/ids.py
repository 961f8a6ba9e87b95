"""Names that cannot be guessed: of jobs, and of the blobs they leave."""

import base64
import re
import secrets
import uuid

from services.contracts.errors import ErrorCode, Refused

_JOB_ID = re.compile(r"job_[a-z2-7]{26}")
_BATCH_ID = re.compile(r"batch_[a-z2-7]{26}")
_BLOB_KEY = re.compile(r"((?:job|batch)_[a-z2-7]{26})/([0-9]{1,9})/([0-9a-f]{32})")


def new_job_id() -> str:
    """`job_` and 26 characters of a-z2-7: 130 random bits."""
    return "job_" + _random()


def new_batch_id() -> str:
    """`batch_`, and as many random bits."""
    return "batch_" + _random()


def is_job_id(text: str) -> bool:
    return _JOB_ID.fullmatch(text) is not None


def is_batch_id(text: str) -> bool:
    return _BATCH_ID.fullmatch(text) is not None


def owns_blobs(text: str) -> bool:
    """Whether it names something that blobs may belong to: a job, or a batch, whose one blob is its upload."""
    return is_job_id(text) or is_batch_id(text)


def new_blob_key(job_id: str, attempt: int) -> str:
    """`{job}/{attempt}/{uuid}`: attempts never share a blob, so a dead one's late write harms nothing."""
    return f"{job_id}/{attempt}/{uuid.uuid4().hex}"


def job_of_blob(key: str) -> str:
    """The job or batch that owns the blob; raises Refused(INVALID_REQUEST) for what `new_blob_key` did not make."""
    match = _BLOB_KEY.fullmatch(key)
    if match is None:
        raise Refused(ErrorCode.INVALID_REQUEST, f"{key!r} is not the key of a blob")
    return match[1]


def _random() -> str:
    return base64.b32encode(secrets.token_bytes(17)).decode().lower()[:26]
