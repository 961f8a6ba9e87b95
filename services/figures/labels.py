"""Text as a picture can show it: every character visible, and none that the font lacks.

A token's spaces matter, so they are drawn as ␣. What has no glyph, and what would steer the text instead of showing
(controls, marks of direction, lone surrogates), is written as Python escapes it.
"""

from collections.abc import Sequence
from functools import cache
from itertools import accumulate

from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.textpath import TextToPath

FONT = "DejaVu Sans"
"""Comes with matplotlib, so a picture is the same on every machine."""

_MORE_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans Devanagari", "Noto Sans Thai", "Noto Sans Symbols 2")
"""Used for what `FONT` lacks where the operator has installed them."""

SMALL, NORMAL, LARGE = 7.0, 8.0, 10.0
"""Sizes in points."""

_MAX_CHARACTERS = 18
_ESCAPES = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


@cache
def families() -> tuple[str, ...]:
    """The fonts to draw with, in order."""
    installed = {font.name for font in fontManager.ttflist}
    return (FONT, *(name for name in _MORE_FONTS if name in installed))


def token(text: str, characters: int = _MAX_CHARACTERS) -> str:
    """A token as it looks in a picture: short, with its spaces shown."""
    return _joined(["␣" if character == " " else _visible(character) for character in text], characters)


def tokens(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(token(text) for text in texts)


def plain(text: str, characters: int = _MAX_CHARACTERS) -> str:
    """Words (a name that a client gave, a sentence) with their spaces left as they are."""
    return _joined([_visible(character) for character in text], characters)


def width(text: str, size: float) -> float:
    """How wide a line of `text` is in inches, drawn at `size` points."""
    if not text:
        return 0.0
    points, _, _ = _measure.get_text_width_height_descent(text, _properties(size), ismath=False)
    return float(points) / 72


def widest(texts: Sequence[str], size: float) -> float:
    """The width of the widest line; 0 for none."""
    return max((width(text, size) for text in texts), default=0.0)


def _joined(parts: Sequence[str], characters: int) -> str:
    """The parts that fit: an escape is shown whole or not at all."""
    text = "".join(parts)
    if len(text) <= characters:
        return text
    lengths = accumulate(len(part) for part in parts)
    return "".join(part for part, end in zip(parts, lengths, strict=True) if end < characters) + "…"


def _visible(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character.isprintable() and ord(character) in _glyphs():
        return character
    return character.encode("unicode_escape").decode("ascii")


@cache
def _glyphs() -> frozenset[int]:
    covered: set[int] = set()
    for family in families():
        covered |= get_font(findfont(family, fallback_to_default=False)).get_charmap().keys()
    return frozenset(covered)


@cache
def _properties(size: float) -> FontProperties:
    return FontProperties(family=list(families()), size=size)


_measure = TextToPath()
