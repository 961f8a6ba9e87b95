"""The one way in: a result, how it shall be drawn, and what comes out."""

from services.contracts.job import JobResult
from services.figures.kinds.choice import picture_of
from services.figures.sheet import render


def draw(result: JobResult, media_type: str, example: int | None = None) -> bytes:
    """The result's picture as SVG or PNG; every tensor of the result must be inline.

    Raises Conflict(NO_FIGURE | FIGURE_TOO_LARGE) and Refused(UNKNOWN_EXAMPLE).
    """
    return render(picture_of(result, example), media_type)
