"""Attention of one head: query × key."""

from collections.abc import Sequence

from services.contracts.tensor import FloatArray
from services.figures import labels
from services.figures.heatmap import Heatmap
from services.figures.scale import Scale, probability, signed


def pattern(
    probabilities: FloatArray, tokens: Sequence[str], title: str, *, queries: Sequence[str] | None = None
) -> Heatmap:
    """How each query's attention, a row, is shared among the keys; `queries` are all tokens unless named."""
    return _square(probabilities, tokens, title, queries, probability("attention"))


def scores(values: FloatArray, tokens: Sequence[str], title: str, *, queries: Sequence[str] | None = None) -> Heatmap:
    """The scores before the softmax; masked ones are blank."""
    return _square(values, tokens, title, queries, signed("attention score", values))


def _square(
    values: FloatArray, tokens: Sequence[str], title: str, queries: Sequence[str] | None, scale: Scale
) -> Heatmap:
    return Heatmap(
        values=values,
        rows=labels.tokens(tokens if queries is None else queries),
        columns=labels.tokens(tokens),
        scale=scale,
        title=title,
        row_name="query",
        column_name="key",
        square=True,
    )
