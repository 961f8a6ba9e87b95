"""Which representation of a result the client would like best (`Accept`, RFC 9110)."""

import re
from collections.abc import Sequence

from api.violations import show
from services.contracts.errors import ErrorCode, Refused

_QVALUE = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")


def choose(accept: str | None, offered: Sequence[str]) -> str:
    """The offered media type that `accept` prefers, the earlier one on equal terms; raises Refused(NOT_ACCEPTABLE)."""
    ranges = [_parse(part) for part in accept.split(",") if part.strip()] if accept else []
    if not ranges:
        return offered[0]
    quality, _, best = max((_quality(media_type, ranges), -rank, media_type) for rank, media_type in enumerate(offered))
    if quality == 0:
        message = f"Accept: {show(accept)} is not offered here: ask for {', '.join(offered)}"
        raise Refused(ErrorCode.NOT_ACCEPTABLE, message)
    return best


def _parse(part: str) -> tuple[str, float]:
    media_range, *parameters = (piece.strip().lower() for piece in part.split(";"))
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            return media_range, _number(value)
    return media_range, 1.0


def _number(text: str) -> float:
    return float(text) if _QVALUE.fullmatch(text.strip()) else 0.0


def _quality(media_type: str, ranges: Sequence[tuple[str, float]]) -> float:
    """The quality of the most specific range that covers `media_type`; 0 when none does."""
    for pattern in (media_type, media_type.split("/", maxsplit=1)[0] + "/*", "*/*"):
        for media_range, quality in ranges:
            if media_range == pattern:
                return quality
    return 0.0
