"""Bars: every number beside its bar stays inside the axes, and the labels of the axis apart."""

from itertools import pairwise

import numpy as np
import pytest
from matplotlib.figure import Figure

from services.figures import labels
from services.figures.bars import Bars


@pytest.mark.parametrize(
    "values",
    [[1.0, -0.0373], [-4.53, 0.0798], [-0.105, 0.0505], [-1.23e-5, -1.11e-4], [1.23e-5, 2.34e-4], [-1.47, 1.87]],
)
def test_numbers_stay_inside_and_labels_apart(values: list[float]) -> None:
    bars = Bars(tuple("ab"), np.array(values, dtype=np.float32), "effect")
    extent = bars.extent()
    figure = Figure(figsize=(2 * extent.width, 2))
    axes = figure.add_axes((0.25, 0.25, 0.5, 0.5))
    axes.tick_params(labelsize=labels.SMALL)
    bars.draw(axes)
    figure.draw_without_rendering()
    frame = axes.get_window_extent()
    for number in axes.texts:
        drawn = number.get_window_extent()
        assert frame.x0 <= drawn.x0
        assert drawn.x1 <= frame.x1
    low, high = axes.get_xlim()
    boxes = [tick.label1.get_window_extent() for tick in axes.xaxis.get_major_ticks() if low <= tick.get_loc() <= high]
    assert len(boxes) >= 2
    assert all(left.x1 + 4 < right.x0 for left, right in pairwise(boxes))
