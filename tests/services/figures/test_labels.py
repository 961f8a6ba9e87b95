"""Tokens as text that any font and any reader can show."""

import pytest

from services.figures import labels


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" Mary", "␣Mary"),
        ("\n", "\\n"),
        ("\x00", "\\x00"),
        ("\u202e", "\\u202e"),
        ("\ud800", "\\ud800"),
        ("$x_1$ <b>", "$x_1$␣<b>"),
        ("Привет", "Привет"),
        ("a token that never ends", "a␣token␣that␣neve…"),
        ("", ""),
    ],
)
def test_every_character_of_a_token_can_be_seen(token: str, shown: str) -> None:
    assert labels.token(token) == shown


def test_what_has_no_glyph_is_escaped_whole_or_left_out() -> None:
    unassigned = "\U000e0100"
    assert labels.token(unassigned) == "\\U000e0100"
    assert labels.token(unassigned * 2) == "\\U000e0100…"


def test_a_wider_text_measures_wider() -> None:
    assert 0 == labels.width("", labels.NORMAL) < labels.width("i", labels.NORMAL) < labels.width("W", labels.NORMAL)
    assert labels.widest(("i", "W"), labels.LARGE) == labels.width("W", labels.LARGE)
