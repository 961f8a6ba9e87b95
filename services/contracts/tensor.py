"""Arrays in a result, tagged by `encoding`: inline values, a reference to bytes, or a mean with its standard error."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, PlainSerializer, PlainValidator, WithJsonSchema

from services.contracts.base import Contract

FloatArray = npt.NDArray[np.float32]
Dimension = Annotated[str, Field(examples=["layer", "position", "head"])]


def _to_values(array: FloatArray) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in array]


def _from_values(values: Any) -> FloatArray:
    if isinstance(values, np.ndarray):
        return np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
    return np.array([np.nan if value is None else value for value in values], dtype=np.float32)


Values = Annotated[
    FloatArray,
    PlainValidator(_from_values),
    PlainSerializer(_to_values, when_used="json"),
    WithJsonSchema({"type": "array", "items": {"anyOf": [{"type": "number"}, {"type": "null"}]}}),
]


class InlineTensor(Contract):
    """An array in row-major order; values that are not finite travel as null."""

    encoding: Literal["inline"] = "inline"
    dims: tuple[Dimension, ...]
    shape: tuple[int, ...]
    dtype: Literal["float32"] = "float32"
    values: Values

    @classmethod
    def of(cls, array: npt.ArrayLike, dims: Sequence[str]) -> Self:
        """Wrap `array` (any shape) whose axes are called `dims`."""
        values = np.asarray(array, dtype=np.float32)
        if values.ndim != len(dims):
            raise ValueError(f"{values.ndim} axes cannot be called {tuple(dims)}")
        return cls(dims=tuple(dims), shape=values.shape, values=values.reshape(-1))

    def array(self) -> FloatArray:
        """The values in their shape."""
        return self.values.reshape(self.shape)


class ExternalTensor(Contract):
    """An array too large to travel inside JSON: little-endian, row-major bytes at `href`."""

    encoding: Literal["external"] = "external"
    dims: tuple[Dimension, ...]
    shape: tuple[int, ...]
    dtype: Literal["float32"] = "float32"
    href: str
    nbytes: int
    sha256: str


Tensor = Annotated[InlineTensor | ExternalTensor, Field(discriminator="encoding")]


class Statistic(Contract):
    """A mean over `count` pairs with the standard error of that mean, cell by cell."""

    encoding: Literal["statistic"] = "statistic"
    mean: Tensor
    standard_error: Tensor
    count: int


Estimate = Annotated[InlineTensor | ExternalTensor | Statistic, Field(discriminator="encoding")]
"""One pair's array, or the statistic over many."""


class ScalarStatistic(Contract):
    """A mean over `count` values; the standard error is null for a single one."""

    mean: float
    standard_error: float | None
    count: int
