"""The cursor of a page that goes by creation: opaque to clients, and nothing they make up gets through."""

import base64
import re

from services.contracts.errors import ErrorCode, Refused


def write_cursor(created: int) -> str:
    return base64.urlsafe_b64encode(b"%d" % created).decode()


def read_cursor(cursor: str) -> int:
    """Microseconds; raises Refused(INVALID_REQUEST)."""
    try:
        created = base64.urlsafe_b64decode(cursor)
    except ValueError:
        created = b""
    if not re.fullmatch(rb"[0-9]{1,20}", created):
        raise Refused(ErrorCode.INVALID_REQUEST, "this cursor is not one that a page came with")
    return int(created)
