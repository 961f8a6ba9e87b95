"""The colour scale beside a panel."""

from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from services.contracts.tensor import FloatArray
from services.figures.scale import Scale


def add_colour_bar(
    axes: Axes,
    scale: Scale,
    *,
    right: float,
    down: float,
    size: tuple[float, float],
    orientation: Literal["vertical", "horizontal"],
    values: FloatArray,
) -> None:
    """Draw `scale`, its upper left corner `right` and `down` of the axes' own, all in inches.

    Where some of `values` are beyond the scale it ends in an arrow.
    """
    figure = axes.get_figure(root=True)
    assert isinstance(figure, Figure)
    box = axes.get_position()
    page_width, page_height = figure.get_size_inches()
    width, height = size
    place = (
        box.x0 + right / page_width,
        box.y1 - (down + height) / page_height,
        width / page_width,
        height / page_height,
    )
    bar_axes = figure.add_axes(place, gid=f"{axes.get_gid()}-scale")
    bar = figure.colorbar(
        ScalarMappable(scale.norm, scale.colormap), cax=bar_axes, orientation=orientation, extend=_beyond(scale, values)
    )
    bar.set_label(scale.label)
    bar.outline.set_linewidth(0.6)


def _beyond(scale: Scale, values: FloatArray) -> Literal["neither", "min", "max", "both"]:
    slack = 1e-4 * (scale.high - scale.low)
    below, above = bool(np.any(values < scale.low - slack)), bool(np.any(values > scale.high + slack))
    if below and above:
        return "both"
    return "min" if below else "max" if above else "neither"
