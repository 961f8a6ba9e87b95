"""The page of random features: seeded, live ones only, contexts as they are, readings kept."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from services.catalogue.feature_index import FeatureIndex, open_index
from services.saes.index.sample import live_features, page, readings_of
from tests.services.saes.index.conftest import D_SAE


@pytest.fixture(scope="module")
def index(indexes: dict[str, Path]) -> Iterator[FeatureIndex]:
    with closing(open_index(indexes["topk"])) as index:
        yield index


def test_features_are_drawn_from_the_live_ones_by_the_seed(index: FeatureIndex) -> None:
    live = [feature for feature in range(D_SAE) if index.card(feature).active_tokens]
    assert len(live) < D_SAE
    assert live_features(index, D_SAE, 0) == live
    drawn = live_features(index, 5, 0)
    assert (len(drawn), drawn) == (5, live_features(index, 5, 0))
    assert set(drawn) < set(live)
    assert drawn != live_features(index, 5, 1)


def test_the_page_shows_the_strongest_contexts_with_their_peak_in_bold(index: FeatureIndex) -> None:
    text = page(index, 5, 0, {})
    for feature in live_features(index, 5, 0):
        card = index.card(feature)
        assert f"## Feature {feature}\n" in text
        strongest = card.contexts[0]
        peak = strongest.tokens[strongest.position].replace("\n", " ⏎ ")
        row = next(line for line in text.split(f"## Feature {feature}\n")[1].splitlines() if "| top |" in line)
        assert row.startswith(f"| {strongest.activation:.1f} | top | ")
        assert f"<b>{peak}</b>" in row
        assert row.endswith(f"| {strongest.document} |")


def test_readings_written_by_hand_are_kept(index: FeatureIndex) -> None:
    first, second, *others = live_features(index, 5, 0)
    blank = page(index, 5, 0, {})
    assert readings_of(blank) == {}
    assert blank.count("\nReading:\n") == 5
    written = page(index, 5, 0, {first: "rivers | bridges, *mostly*", second: "nothing"})
    assert readings_of(written) == {first: "rivers | bridges, *mostly*", second: "nothing"}
    assert page(index, 5, 0, readings_of(written)) == written
    assert others
