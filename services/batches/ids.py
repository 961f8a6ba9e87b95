"""The names of a batch's jobs follow from the batch and the line, so that submitting a line twice makes one job."""

import base64
import hashlib


def job_id_of(batch_id: str, index: int) -> str:
    """The id of the job of a batch's line, lines counted from 0; as hard to guess as the batch's own id."""
    digest = hashlib.sha256(f"{batch_id}:{index}".encode()).digest()
    return "job_" + base64.b32encode(digest).decode().lower()[:26]
