"""The colour scale beside a panel."""

from typing import Literal

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from services.figures.scale import Scale


def add_colour_bar(
    axes: Axes,
    scale: Scale,
    *,
    right: float,
    down: float,
    size: tuple[float, float],
    orientation: Literal["vertical", "horizontal"],
) -> None:
    """Draw `scale`, its upper left corner `right` and `down` of the axes' own, all in inches."""
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
    bar = figure.colorbar(ScalarMappable(scale.norm, scale.colormap), cax=bar_axes, orientation=orientation)
    bar.set_label(scale.label)
    bar.outline.set_linewidth(0.6)
