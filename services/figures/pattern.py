"""Attention patterns: query × key, one square per head."""

from collections.abc import Sequence

from services.contracts.tensor import FloatArray
from services.figures import labels
from services.figures.heatmap import Heatmap
from services.figures.scale import probability


def pattern(probabilities: FloatArray, tokens: Sequence[str], title: str) -> Heatmap:
    """One head's pattern (query × key): how the attention of each query, a row, is shared among the keys."""
    names = labels.tokens(tokens)
    return Heatmap(
        values=probabilities,
        rows=names,
        columns=names,
        scale=probability("attention"),
        title=title,
        row_name="query",
        column_name="key",
    )
