"""A matrix as coloured cells, with a label per row and column and a colour scale; optionally a text in each cell."""

import math
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from services.contracts.tensor import FloatArray
from services.figures import labels
from services.figures.colour_bar import add_colour_bar
from services.figures.picture import Extent, too_large
from services.figures.scale import BLANK, Scale

CELL_WIDTH, CELL_HEIGHT = 0.27, 0.19
"""The size of a cell in inches, where there is room for it."""

_MAX_SIDE = 16.0
"""Of the cells together, in inches: with many of them each is smaller."""
_MIN_CELL = 0.01
_LABEL_PITCH = 0.125
"""The least distance between two labels, in inches: where cells are smaller, every second or third is labelled."""
_BAR_WIDTH, _BAR_GAP, _BAR_ROOM = 0.12, 0.12, 0.75
_TEXT_COST = 50
"""A cell with a text takes as long to draw as so many without."""
_RASTERED_FROM = 10_000
"""From so many cells on they go into the SVG as one image."""


@dataclass(frozen=True, eq=False)
class Heatmap:
    """`values` is row × column; what is not finite stays blank.

    `marked` columns have a bold label. `rule_before`: a line before that column. `up`: the first row is the lowest.
    """

    values: FloatArray
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    scale: Scale
    title: str = ""
    row_name: str = ""
    column_name: str = ""
    texts: tuple[tuple[str, ...], ...] | None = None
    marked: frozenset[int] = frozenset()
    rule_before: int | None = None
    up: bool = False
    square: bool = False
    bar: bool = True

    @property
    def cells(self) -> int:
        return int(self.values.size) * (1 if self.texts is None else _TEXT_COST)

    def extent(self) -> Extent:
        width, height = self._cell()
        left = labels.widest(self.rows, labels.SMALL) + 0.1 + (0.2 if self.row_name else 0.0)
        bottom = self._label_depth() + (0.22 if self.column_name else 0.05)
        right = _BAR_GAP + _BAR_WIDTH + _BAR_ROOM if self.bar else 0.15
        rows, columns = self.values.shape
        extra = labels.width(self.title, labels.NORMAL) - columns * width - right
        return Extent(
            columns * width, rows * height, left, right + max(extra, 0.0), 0.26 if self.title else 0.1, bottom + 0.1
        )

    def draw(self, axes: Axes) -> None:
        rows, columns = self.values.shape
        axes.pcolormesh(
            np.ma.masked_invalid(self.values),
            cmap=self.scale.colormap,
            norm=self.scale.norm,
            rasterized=self.cells > _RASTERED_FROM,
        )
        axes.set_facecolor(BLANK)
        axes.set_xlim(0, columns)
        axes.set_ylim((0, rows) if self.up else (rows, 0))
        axes.set_title(self.title)
        axes.set_xlabel(self.column_name)
        axes.set_ylabel(self.row_name)
        self._label(axes)
        if self.rule_before is not None:
            axes.axvline(self.rule_before, color="black", linewidth=0.8)
        if self.texts is not None:
            self._write(axes, self.texts)
        if self.bar:
            width, height = self._cell()
            tall = min(max(rows * height, 1.0), 3.0)
            place = columns * width + _BAR_GAP
            size = (_BAR_WIDTH, tall)
            add_colour_bar(
                axes, self.scale, right=place, down=0.0, size=size, orientation="vertical", values=self.values
            )

    def _cell(self) -> tuple[float, float]:
        rows, columns = self.values.shape
        width, widest = CELL_HEIGHT if self.square else CELL_WIDTH, _MAX_SIDE / columns
        if self.texts is not None:
            width = widest = max(
                width, labels.widest([text for row in self.texts for text in row], labels.SMALL) + 0.08
            )
        width, height = min(width, widest), min(CELL_HEIGHT, _MAX_SIDE / rows)
        if min(width, height) < _MIN_CELL:
            raise too_large(f"{rows:,} × {columns:,} cells side by side")
        return width, height

    def _upright(self) -> bool:
        """Whether the columns' labels fit side by side without being turned."""
        return labels.widest(self.columns, labels.SMALL) + 0.06 <= self._cell()[0]

    def _label_depth(self) -> float:
        return 0.15 if self._upright() else labels.widest(self.columns, labels.SMALL) + 0.05

    def _label(self, axes: Axes) -> None:
        width, height = self._cell()
        across, down = _shown(len(self.columns), width), _shown(len(self.rows), height)
        down = down if any(self.rows) else range(0)
        axes.set_yticks([row + 0.5 for row in down], [self.rows[row] for row in down])
        axes.set_xticks([column + 0.5 for column in across], [self.columns[column] for column in across])
        axes.tick_params(axis="x", labelrotation=0 if self._upright() else 90)
        for column, text in zip(across, axes.get_xticklabels(), strict=True):
            text.set_fontweight("bold" if column in self.marked else "normal")

    def _write(self, axes: Axes, texts: tuple[tuple[str, ...], ...]) -> None:
        for row, line in enumerate(texts):
            for column, text in enumerate(line):
                ink = self.scale.ink(float(self.values[row, column]))
                axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=labels.SMALL, color=ink)


def _shown(count: int, pitch: float) -> range:
    """Which of `count` labels are shown when they are `pitch` inches apart."""
    return range(0, count, max(1, math.ceil(_LABEL_PITCH / pitch)))
