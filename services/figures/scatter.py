"""Estimates against exact values: a point per cell, and the line on which they agree."""

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from services.contracts.tensor import FloatArray
from services.figures import labels
from services.figures.picture import Extent
from services.figures.scale import NEUTRAL, POSITIVE

_SIDE = 2.4


@dataclass(frozen=True, eq=False)
class Scatter:
    """`exact` across, `estimated` upwards; `strongest` marks the cells chosen for their size, `others` says how the
    others were."""

    exact: FloatArray
    estimated: FloatArray
    strongest: tuple[bool, ...]
    value_name: str
    title: str = ""
    others: str = "sampled"

    @property
    def cells(self) -> int:
        return len(self.strongest)

    def extent(self) -> Extent:
        extra = labels.width(self.title, labels.NORMAL) - _SIDE
        return Extent(_SIDE, _SIDE, 0.6, max(extra, 1.2), 0.26, 0.5)

    def draw(self, axes: Axes) -> None:
        chosen = np.array(self.strongest, dtype=bool)
        for mask, colour, marker, name in ((chosen, POSITIVE, "o", "strongest"), (~chosen, NEUTRAL, "x", self.others)):
            if mask.any():
                axes.scatter(self.exact[mask], self.estimated[mask], s=14, c=colour, marker=marker, label=name)
        both = np.concatenate([self.exact, self.estimated, np.zeros(1, dtype=np.float32)])
        both = both[np.isfinite(both)]
        margin = 0.08 * (float(np.ptp(both)) or 1.0)
        low, high = float(both.min()) - margin, float(both.max()) + margin
        axes.plot([low, high], [low, high], color="black", linewidth=0.6, linestyle="--", label="equal")
        axes.locator_params(nbins=5)
        axes.set_xlim(low, high)
        axes.set_ylim(low, high)
        axes.set_xlabel(f"exact {self.value_name}")
        axes.set_ylabel(f"estimated {self.value_name}")
        axes.set_title(self.title)
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=labels.SMALL)
