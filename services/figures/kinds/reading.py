"""What a picture takes out of a result: arrays, their errors, and the one example or pair that was asked for."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from services.contracts.errors import Conflict, ErrorCode, Refused
from services.contracts.result import Result
from services.contracts.tensor import Estimate, ExternalTensor, FloatArray, ScalarStatistic, Statistic
from services.figures import labels
from services.figures.picture import nothing_to_draw

Item = TypeVar("Item")
_NOTE_CHARACTERS = 160


def array(estimate: Estimate) -> FloatArray:
    """The values in their shape; of a statistic its mean. External tensors must have been loaded."""
    tensor = estimate.mean if isinstance(estimate, Statistic) else estimate
    if isinstance(tensor, ExternalTensor):
        raise TypeError(f"{tensor.href} was not loaded")
    return tensor.array()


def error(estimate: Estimate) -> FloatArray | None:
    """The standard error of each value; None for a single example or pair."""
    return array(estimate.standard_error) if isinstance(estimate, Statistic) else None


def dims(estimate: Estimate) -> tuple[str, ...]:
    return estimate.mean.dims if isinstance(estimate, Statistic) else estimate.dims


def scalars(statistics: Sequence[ScalarStatistic]) -> tuple[FloatArray, FloatArray | None]:
    """The means, and their standard errors where there are any."""
    means = np.array([one.mean for one in statistics], dtype=np.float32)
    errors = [one.standard_error for one in statistics]
    if all(value is None for value in errors):
        return means, None
    return means, np.array([np.nan if value is None else value for value in errors], dtype=np.float32)


def pick(items: Sequence[Item], example: int | None) -> Item:
    """The item that was asked for, else the first. Raises Refused(UNKNOWN_EXAMPLE)."""
    index = example or 0
    if index >= len(items):
        last = f"0..{len(items) - 1}" if items else "none"
        raise Refused(ErrorCode.UNKNOWN_EXAMPLE, f"there is no example {index}: the result has {last}")
    return items[index]


def not_reported(example: int, flag: str | None = None) -> Conflict:
    """What to raise when a result has no figures of one example; `flag` of the job would have asked for them."""
    way_out = f"send the job with `{flag}`" if flag else "send a job of that one alone"
    return nothing_to_draw(f"the result has no figures of example {example} alone: {way_out}")


def title(result: Result, *parts: str) -> str:
    """What was done, how, and to which model."""
    return " · ".join([*filter(None, parts), result.provenance.model])


def notes(result: Result, *first: str) -> tuple[str, ...]:
    """The notes of a kind, then the result's own warnings."""
    return tuple(labels.plain(note, _NOTE_CHARACTERS) for note in (*first, *result.warnings[:3]) if note)


def number(value: float) -> str:
    """Three decimals, with a true minus."""
    return f"{value:.3f}".replace("-", "−")


def blank(values: FloatArray, why: str = "no value") -> str:
    """What grey cells mean, where there are any."""
    return "" if np.isfinite(values).all() else f"grey: {why}"


def of_all(count: int, what: str, example: int | None) -> str:
    """Which examples the numbers are of."""
    if example is not None:
        return f"{what} {example} of {count} (from 0)"
    return f"mean over {count} {what}s" if count > 1 else ""
