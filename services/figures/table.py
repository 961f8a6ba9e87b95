"""A table of tokens: one row per layer, one column per position, each cell on the colour of its number."""

from collections.abc import Sequence

from services.contracts.tensor import FloatArray
from services.figures import labels
from services.figures.heatmap import Heatmap
from services.figures.scale import Scale


def token_table(
    top: Sequence[Sequence[str]],
    values: FloatArray,
    scale: Scale,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str = "",
) -> Heatmap:
    """The token of each cell (`top`: row × column) on the colour of `values`; the first row is the lowest."""
    return Heatmap(
        values=values,
        rows=tuple(rows),
        columns=tuple(columns),
        scale=scale,
        title=title,
        row_name="layer",
        texts=tuple(tuple(labels.token(text, 10) for text in row) for row in top),
        up=True,
    )
