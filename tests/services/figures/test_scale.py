"""Colour scales."""

import numpy as np

from services.figures.scale import BLANK, probability, sequential, signed

VALUES = np.array([-1.0, 0.0, 4.0, np.nan, np.inf], dtype=np.float32)


def test_a_signed_scale_is_symmetric_about_zero() -> None:
    scale = signed("effect", VALUES)
    assert (scale.low, scale.high) == (-4.0, 4.0)
    red, green, blue = (int(scale.colour(0.0)[start : start + 2], 16) for start in (1, 3, 5))
    assert min(red, green, blue) > 240


def test_equal_magnitudes_are_equally_far_from_white() -> None:
    scale = signed("effect", VALUES)
    assert scale.colour(4.0) == "#67001f"
    assert scale.colour(-4.0) == "#053061"


def test_a_sequential_scale_begins_at_zero_and_a_probability_ends_at_one() -> None:
    assert (sequential("norm", VALUES).low, sequential("norm", VALUES).high) == (0.0, 4.0)
    assert (probability("attention").low, probability("attention").high) == (0.0, 1.0)


def test_zeros_and_blanks_alone_still_have_a_scale() -> None:
    for values in (np.zeros(3, dtype=np.float32), np.full(3, np.nan, dtype=np.float32)):
        scale = signed("effect", values)
        assert (scale.low, scale.high) == (-1.0, 1.0)
        assert scale.colour(float(values[0])) in (BLANK, scale.colour(0.0))


def test_text_is_white_on_dark_cells_and_black_on_light_ones() -> None:
    scale = probability("attention")
    assert (scale.ink(1.0), scale.ink(0.1), scale.ink(float("nan"))) == ("white", "black", "black")
