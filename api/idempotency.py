"""The `Idempotency-Key` header: the same request, sent again, finds the job that it made."""

import hashlib
import json
from typing import Annotated

from fastapi import Header

from services.contracts.job import JobSpec
from services.jobs.record import Idempotency

REPLAYED = "Idempotency-Replayed"

IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description=(
            "A name that the client makes up for this request, a UUID say. The same request under the same name finds "
            "the job (or batch) that the first one made, for as long as that is kept; another request is refused. "
            "Names of different tenants never meet."
        ),
        examples=["7b0ee6f3-0a3f-4c0e-9a39-1f0b0f4f6c1d"],
    ),
]


def idempotency(key: str | None, spec: JobSpec) -> Idempotency | None:
    """What is reserved with the job. The digest is of the specification as it was understood: neither the order of
    fields nor a default written out makes it another request."""
    if key is None:
        return None
    normal = json.dumps(spec.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return Idempotency(key, hashlib.sha256(normal.encode()).hexdigest())


def upload_idempotency(key: str | None, upload: bytes, *parameters: str | None) -> Idempotency | None:
    """What is reserved with a batch: here the bytes count, as they came."""
    if key is None:
        return None
    digest = hashlib.sha256(json.dumps(parameters).encode())
    digest.update(upload)
    return Idempotency(key, digest.hexdigest())
