"""Two samples compared, many quantities at once: effect size, rank test, and correction for the number of tests.

Hedges' g (Hedges 1981) with J = 1 − 3 / (4 (n + m) − 9); Mann & Whitney 1947 with mid-ranks, normal approximation,
tie and continuity correction, as `scipy.stats.mannwhitneyu(method="asymptotic")`; Benjamini & Hochberg 1995.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float64

QUANTITIES_AT_ONCE = 4_096

ROUNDING = 1e-5
"""Differences below this, in parts of a quantity's largest value, are not differences: the same prefix run in two
batches gives the same activation only to rounding, and ranks would make a discovery of that."""

Sample = Float64[np.ndarray, "member quantity"]
PerQuantity = Float64[np.ndarray, " quantity"]


@dataclass(frozen=True)
class RankTest:
    """P(first > second) + P(equal) / 2, and the two-sided p-value of its being a half. Equal is up to rounding."""

    auroc: PerQuantity
    p_value: PerQuantity


def hedges_g(first: Sample, second: Sample) -> PerQuantity:
    """Difference of means in pooled standard deviations; NaN where these are zero or not defined."""
    n, m = len(first), len(second)
    if n + m <= 2:
        return np.full(first.shape[1], np.nan)
    squares = [((sample - sample.mean(axis=0)) ** 2).sum(axis=0) for sample in (first, second)]
    deviation: PerQuantity = np.sqrt((squares[0] + squares[1]) / (n + m - 2))
    difference = first.mean(axis=0) - second.mean(axis=0)
    correction = 1 - 3 / (4 * (n + m) - 9)
    effects: PerQuantity = np.full_like(difference, np.nan)
    np.divide(correction * difference, deviation, out=effects, where=deviation > ROUNDING * _largest(first, second))
    return effects


def rank_test(first: Sample, second: Sample) -> RankTest:
    """Mann-Whitney U of every quantity."""
    bounds = [*range(0, first.shape[1], QUANTITIES_AT_ONCE), first.shape[1]]
    pieces = [_ranked(first[:, start:end], second[:, start:end]) for start, end in pairwise(bounds)]
    if not pieces:
        return RankTest(np.zeros(0), np.zeros(0))
    return RankTest(*(np.concatenate(parts) for parts in zip(*pieces, strict=True)))


def _ranked(first: Sample, second: Sample) -> tuple[PerQuantity, PerQuantity]:
    n, m = len(first), len(second)
    values = torch.from_numpy(np.concatenate([first, second]).T.copy())
    ordered, order = values.sort(dim=1)
    largest = torch.from_numpy(_largest(first, second))[:, None]
    levels = torch.nn.functional.pad((ordered.diff(dim=1) > ROUNDING * largest).cumsum(dim=1), (1, 0))
    values, ordered = torch.empty_like(levels).scatter_(1, order, levels), levels
    below = torch.searchsorted(ordered, values).double()
    through = torch.searchsorted(ordered, values, right=True).double()
    u = ((below + through + 1) / 2)[:, :n].sum(dim=1) - n * (n + 1) / 2
    ties = ((through - below) ** 2 - 1).sum(dim=1)
    variance = n * m / 12 * (n + m + 1 - ties / ((n + m) * (n + m - 1)))
    z = ((u - n * m / 2).abs() - 0.5).clamp(min=0) / variance.clamp(min=0).sqrt()
    p = torch.where(variance > 0, torch.erfc(z / 2**0.5), 1.0)
    return (u / (n * m)).numpy(), p.numpy()


def _largest(first: Sample, second: Sample) -> PerQuantity:
    largest: PerQuantity = np.maximum(np.abs(first).max(axis=0), np.abs(second).max(axis=0))
    return largest


def false_discovery_rates(p_values: PerQuantity) -> PerQuantity:
    """q-values: the smallest false discovery rate at which each would be called a discovery."""
    count = len(p_values)
    order = np.argsort(p_values, kind="stable")
    scaled = p_values[order] * count / np.arange(1, count + 1)
    q_values = np.empty(count)
    q_values[order] = np.minimum.accumulate(scaled[::-1])[::-1].clip(max=1.0)
    return q_values
