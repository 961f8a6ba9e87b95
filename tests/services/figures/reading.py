"""What is written in an SVG, and where."""

from xml.etree import ElementTree as Tree

from services.contracts.job import JobResult
from services.figures.draw import draw

NAMESPACE = "{http://www.w3.org/2000/svg}"


def drawn(result: JobResult, example: int | None = None) -> Tree.Element:
    """The result's picture, parsed."""
    return Tree.fromstring(draw(result, "image/svg+xml", example))


def texts(picture: Tree.Element) -> list[str]:
    """Every text of the picture, in the order it is drawn."""
    return [element.text or "" for element in picture.iter(f"{NAMESPACE}text")]


def part(picture: Tree.Element, name: str) -> Tree.Element:
    """The group called `name`: `panel-0`, or its colour scale `panel-0-scale`."""
    found = picture.find(f".//{NAMESPACE}g[@id='{name}']")
    assert found is not None, name
    return found
