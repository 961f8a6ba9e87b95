"""Cursors of the fakes: a number that clients are not meant to read."""

import base64

from services.contracts.errors import ErrorCode, Refused


def write_cursor(number: int) -> str:
    return base64.urlsafe_b64encode(b"%d" % number).decode()


def read_cursor(cursor: str) -> int:
    """Raises Refused(INVALID_REQUEST)."""
    try:
        return int(base64.urlsafe_b64decode(cursor))
    except ValueError as error:
        raise Refused(ErrorCode.INVALID_REQUEST, "this cursor is not one that a page came with") from error
