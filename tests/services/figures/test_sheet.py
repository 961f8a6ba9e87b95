"""Pages: the same bytes for the same picture, bounded, and drawn by objects alone."""

import subprocess
import sys
from xml.etree import ElementTree as Tree

import numpy as np
import pytest

from services.contracts.errors import Conflict, ErrorCode
from services.figures.draw import draw
from services.figures.heatmap import Heatmap
from services.figures.picture import Panel, Picture
from services.figures.scale import signed
from services.figures.sheet import MEDIA_TYPES, PNG, SVG, render
from tests.services.figures import samples
from tests.services.figures.reading import NAMESPACE, part, texts


def heatmap(rows: int, columns: int, *, texts: bool = False) -> Heatmap:
    values = np.zeros((rows, columns), dtype=np.float32)
    return Heatmap(
        values=values,
        rows=tuple(map(str, range(rows))),
        columns=tuple(f"t{column}" for column in range(columns)),
        scale=signed("effect", values),
        texts=(("a token",) * columns,) * rows if texts else None,
    )


def page(*panels: Panel) -> Picture:
    return Picture("title", (panels,), ("note",))


@pytest.mark.parametrize("media_type", MEDIA_TYPES)
def test_the_same_result_gives_the_same_bytes(media_type: str) -> None:
    result = samples.patching(("layer", "position"), samples.ramp(3, 8))
    assert draw(result, media_type) == draw(result, media_type)


def test_an_svg_names_a_font_that_every_reader_has() -> None:
    assert b"'DejaVu Sans', 'Verdana', 'Arial', sans-serif" in render(page(heatmap(2, 2)), SVG)


def test_many_positions_have_fewer_labels() -> None:
    shown = texts(Tree.fromstring(render(page(heatmap(2, 500)), SVG)))
    labelled = [text for text in shown if text.startswith("t") and text[1:].isdigit()]
    assert labelled[0] == "t0"
    assert 50 < len(labelled) <= 160


def test_a_large_heatmap_is_an_image_inside_the_svg() -> None:
    large, small = (Tree.fromstring(render(page(heatmap(rows, 100)), SVG)) for rows in (120, 20))
    assert part(large, "panel-0").find(f".//{NAMESPACE}image") is not None
    assert part(small, "panel-0").find(f".//{NAMESPACE}image") is None


@pytest.mark.parametrize(
    "picture",
    [
        page(heatmap(30, 4_000)),
        page(heatmap(2, 2_000)),
        page(heatmap(100, 50, texts=True)),
        page(*[heatmap(1, 60)] * 3),
    ],
    ids=["too many cells", "too narrow cells", "too many texts", "too wide a page"],
)
def test_what_no_page_holds_is_refused_with_the_way_out(picture: Picture) -> None:
    with pytest.raises(Conflict, match="/result") as refusal:
        render(picture, PNG)
    assert refusal.value.code == ErrorCode.FIGURE_TOO_LARGE


def test_drawing_leaves_no_trace_in_the_process() -> None:
    code = (
        "import matplotlib, sys; before = matplotlib.rcParams.copy();"
        "from tests.services.figures import attributions; from services.figures.draw import draw;"
        "draw(attributions.direct_logit(), 'image/png');"
        "assert matplotlib.rcParams.copy() == before;"
        "assert not {'matplotlib.pyplot', 'torch', 'tkinter'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
