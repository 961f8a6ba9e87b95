"""Effect sizes, rank tests and q-values against their definitions and scipy."""

import math

import numpy as np
import pytest
from scipy.stats import false_discovery_control, mannwhitneyu  # type: ignore[import-untyped]

from services.methods.two_samples import false_discovery_rates, hedges_g, rank_test


def samples(n: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    """Mostly zeros, rounded, so that there are ties of every size; quantity 0 is constant."""
    draw = np.random.default_rng(5)
    first = np.maximum(draw.normal(0.2, 1, (n, 40)), 0).round(1)
    second = np.maximum(draw.normal(-0.2, 1, (m, 40)), 0).round(1)
    first[:, 0], second[:, 0] = 1.0, 1.0
    return first, second


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 2), (12, 30), (200, 150)])
def test_rank_tests_equal_scipys_with_ties_and_continuity(n: int, m: int) -> None:
    first, second = samples(n, m)
    found = rank_test(first, second)
    expected = mannwhitneyu(first[:, 1:], second[:, 1:], method="asymptotic")
    pairs = (first[:, None] > second[None]) + 0.5 * (first[:, None] == second[None])
    np.testing.assert_allclose(found.auroc, pairs.mean(axis=(0, 1)), atol=1e-12)
    constant = np.isnan(expected.pvalue)
    np.testing.assert_allclose(found.p_value[1:][~constant], expected.pvalue[~constant], rtol=1e-9)
    assert found.p_value[0] == 1.0, "a constant tells nothing apart"
    assert (found.p_value[1:][constant] == 1.0).all()


def test_hedges_g_is_the_corrected_difference_in_pooled_deviations() -> None:
    first, second = samples(12, 30)
    found = hedges_g(first, second)
    pooled = np.sqrt((11 * first.var(axis=0, ddof=1) + 29 * second.var(axis=0, ddof=1)) / 40)
    difference = first.mean(axis=0) - second.mean(axis=0)
    exact = math.gamma(20) / (math.sqrt(20) * math.gamma(19.5))
    np.testing.assert_allclose(found[1:], exact * difference[1:] / pooled[1:], rtol=1e-3)
    assert np.isnan(found[0]), "no deviation to measure in"
    assert np.isnan(hedges_g(np.ones((1, 2)), np.zeros((1, 2)))).all()


@pytest.mark.parametrize("count", [1, 7, 500])
def test_q_values_equal_scipys(count: int) -> None:
    p_values = np.random.default_rng(1).uniform(size=count) ** 3
    np.testing.assert_allclose(false_discovery_rates(p_values), false_discovery_control(p_values), rtol=1e-12)


def test_nothing_tested_has_no_q_values() -> None:
    assert len(false_discovery_rates(np.zeros(0))) == 0
    assert len(rank_test(np.zeros((3, 0)), np.zeros((2, 0))).p_value) == 0


def test_what_differs_by_rounding_alone_is_equal() -> None:
    first, second = np.full((20, 1), 3.0), np.full((20, 1), 3.0 + 1e-6)
    found = rank_test(first, second)
    assert found.auroc[0] == 0.5
    assert found.p_value[0] == 1.0
    assert np.isnan(hedges_g(first, second)).all()
