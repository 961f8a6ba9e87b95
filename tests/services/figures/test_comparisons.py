"""Pictures of a contrast and of a search, read back from their SVG."""

import pytest

from services.contracts.errors import ErrorCode, Refused
from services.contracts.features import FeaturesResult
from services.figures.draw import draw
from services.figures.sheet import PNG
from tests.services.figures import comparisons
from tests.services.figures.reading import drawn, texts


def test_a_contrast_says_how_many_features_were_tested_and_which_set_is_which() -> None:
    shown = texts(drawn(comparisons.contrast()))
    assert {"baseline", "prompts", "Hedges' g", "no value"} <= set(shown)
    assert any("12 prompts against 11; 30 features tested" in text for text in shown)
    assert any("1 of the 3 listed have q ≤ 0.05" in text for text in shown)


def test_a_search_says_how_many_tokens_were_marked() -> None:
    shown = texts(drawn(comparisons.search()))
    assert {"other tokens", "marked tokens", "F1 of firing"} <= set(shown)
    assert any("2 tokens marked, 6 others" in text for text in shown)


@pytest.mark.parametrize("result", [comparisons.contrast(), comparisons.search()])
def test_a_comparison_has_no_figure_of_one_prompt(result: FeaturesResult) -> None:
    with pytest.raises(Refused, match="the result has none") as refused:
        draw(result, PNG, example=0)
    assert refused.value.code == ErrorCode.UNKNOWN_EXAMPLE
