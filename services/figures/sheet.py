"""A picture drawn: SVG whose text stays text, or PNG. The same picture gives the same bytes.

matplotlib is not made for several threads, and its settings belong to the process: draw one picture at a time.
"""

import io
import math
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from services.figures import labels
from services.figures.picture import MAX_CELLS, MAX_SIDE, Extent, Picture, too_large

SVG = "image/svg+xml"
PNG = "image/png"
MEDIA_TYPES = (SVG, PNG)

_DPI = 160
_MAX_PIXELS = 20_000_000
_TITLE_HEIGHT = 0.3
_NOTE_HEIGHT = 0.16

_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "lensd",
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "font.sans-serif": [labels.FONT, "Verdana", "Arial"],
    "font.size": labels.NORMAL,
    "axes.titlesize": labels.NORMAL,
    "axes.labelsize": labels.NORMAL,
    "axes.linewidth": 0.6,
    "axes.titlelocation": "left",
    "xtick.labelsize": labels.SMALL,
    "ytick.labelsize": labels.SMALL,
    "xtick.major.size": 2.0,
    "ytick.major.size": 2.0,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
}


def render(picture: Picture, media_type: str) -> bytes:
    """The picture as one of `MEDIA_TYPES`. Raises Conflict(FIGURE_TOO_LARGE)."""
    cells = sum(panel.cells for row in picture.rows for panel in row)
    if cells > MAX_CELLS:
        raise too_large(f"{cells:,} cells, where {MAX_CELLS:,} can be drawn")
    with mpl.rc_context():
        mpl.rcdefaults()
        # The generic name is for readers of an SVG that have not the font.
        mpl.rcParams.update({**_STYLE, "font.family": [*labels.families(), "sans-serif"]})
        figure = _compose(picture)
        return _svg(figure, picture.title) if media_type == SVG else _png(figure)


def _compose(picture: Picture) -> Figure:
    extents = [[panel.extent() for panel in row] for row in picture.rows]
    width = max(sum(extent.outer_width for extent in row) for row in extents)
    width = max(width, labels.width(picture.title, labels.LARGE), labels.widest(picture.notes, labels.SMALL))
    heights = [max(extent.outer_height for extent in row) for row in extents]
    height = _TITLE_HEIGHT + sum(heights) + _NOTE_HEIGHT * len(picture.notes)
    if max(width, height) > MAX_SIDE:
        raise too_large(f"{width:.0f} × {height:.0f} inches, where {MAX_SIDE:.0f} can be drawn")
    figure = Figure(figsize=(width, height))
    top = height - _TITLE_HEIGHT
    figure.text(0, (height - 0.04) / height, picture.title, fontsize=labels.LARGE, fontweight="bold", va="top")
    number = 0
    for row, row_extents, row_height in zip(picture.rows, extents, heights, strict=True):
        left = 0.0
        for panel, extent in zip(row, row_extents, strict=True):
            axes = figure.add_axes(_place(extent, left, top, width, height), gid=f"panel-{number}")
            panel.draw(axes)
            left += extent.outer_width
            number += 1
        top -= row_height
    for index, note in enumerate(picture.notes):
        y = (top - _NOTE_HEIGHT * (index + 0.2)) / height
        figure.text(0, y, note, fontsize=labels.SMALL, va="top", color="#333333")
    return figure


def _place(extent: Extent, left: float, top: float, width: float, height: float) -> tuple[float, float, float, float]:
    """Where a panel's axes are, as fractions of the figure: its outer corner is at `left` and `top`."""
    bottom = top - extent.top - extent.height
    return (left + extent.left) / width, bottom / height, extent.width / width, extent.height / height


def _svg(figure: Figure, title: str) -> bytes:
    file = io.BytesIO()
    metadata = {"Date": None, "Title": title}
    FigureCanvasSVG(figure).print_figure(
        file, format="svg", metadata=metadata, bbox_inches="tight", pad_inches=0.1, dpi=_DPI
    )
    return file.getvalue()


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    width, height = figure.get_size_inches()
    dpi = min(_DPI, math.sqrt(_MAX_PIXELS / (width * height)))
    FigureCanvasAgg(figure).print_figure(file, format="png", dpi=dpi, bbox_inches="tight", pad_inches=0.1)
    return file.getvalue()
