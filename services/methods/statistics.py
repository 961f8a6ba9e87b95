"""Means over pairs: one pair's array as it is, many as a mean with its standard error."""

import numpy as np
import numpy.typing as npt
from jaxtyping import Float64

from services.contracts.tensor import InlineTensor, ScalarStatistic, Statistic

Array = npt.NDArray[np.float64]
PerPair = Float64[np.ndarray, "pair ..."]
OneArray = Float64[np.ndarray, "..."]
PairScalars = Float64[np.ndarray, " pair"]

VANISHING = 1e-3


class RunningMean:
    """A mean, cell by cell, of arrays that come one after another and are not kept (Welford 1962)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: OneArray = np.zeros(())
        self._squares: OneArray = np.zeros(())

    def add(self, values: OneArray) -> None:
        """One more array, of the shape that all of them have."""
        self.count += 1
        off = values - self.mean
        self.mean = self.mean + off / self.count
        self._squares = self._squares + off * (values - self.mean)

    def standard_error(self) -> OneArray | None:
        """Of the mean; None for a single array."""
        return np.sqrt(self._squares / (self.count - 1) / self.count) if self.count > 1 else None

    def estimate(self, dims: tuple[str, ...]) -> InlineTensor | Statistic:
        """The mean; of more than one array, with its standard error."""
        error, mean = self.standard_error(), InlineTensor.of(self.mean, dims)
        if error is None:
            return mean
        return Statistic(mean=mean, standard_error=InlineTensor.of(error, dims), count=self.count)


def estimate(values: PerPair, dims: tuple[str, ...]) -> InlineTensor | Statistic:
    """The mean over the first axis; with more than one pair, also the standard error of that mean."""
    count = len(values)
    if count == 1:
        return InlineTensor.of(values[0], dims)
    error = values.std(axis=0, ddof=1) / np.sqrt(count)
    return Statistic(
        mean=InlineTensor.of(values.mean(axis=0), dims), standard_error=InlineTensor.of(error, dims), count=count
    )


def scalar_estimate(values: PairScalars) -> ScalarStatistic:
    """The mean over examples or pairs; with more than one, also the standard error of that mean."""
    count = len(values)
    error = float(values.std(ddof=1) / np.sqrt(count)) if count > 1 else None
    return ScalarStatistic(mean=float(values.mean()), standard_error=error, count=count)


def ratio_of_means(
    effects: PerPair, denominators: PairScalars, magnitude: float, dims: tuple[str, ...]
) -> tuple[InlineTensor | Statistic, bool]:
    """mean(effects) / mean(denominators), its standard error by the delta method, and whether it means anything.

    It does not when |mean(denominators)| < 1e-3 · max(1, magnitude): then every value is NaN, null on the wire.
    """
    count = len(effects)
    denominator = denominators.mean()
    meaningful = bool(abs(denominator) >= VANISHING * max(1.0, magnitude))
    ratio = effects.mean(axis=0) / denominator if meaningful else np.full(effects.shape[1:], np.nan)
    if count == 1:
        return InlineTensor.of(ratio, dims), meaningful
    spread = denominators.reshape(-1, *([1] * (effects.ndim - 1)))
    residuals = effects - ratio * spread
    error = np.sqrt((residuals**2).sum(axis=0) / (count - 1) / count) / abs(denominator) if meaningful else ratio
    mean, standard_error = InlineTensor.of(ratio, dims), InlineTensor.of(error, dims)
    return Statistic(mean=mean, standard_error=standard_error, count=count), meaningful
