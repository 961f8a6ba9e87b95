"""`python -m services.saes.index.sample INDEX --out FILE`: random live features with their contexts, as Markdown.

The features are drawn with a seed, so that nobody picked them; their contexts stand as they are. What a reader makes of
a feature goes into its line `Reading:` by hand, and is kept when the page is written again.
"""

import argparse
import html
import random
import re
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from services.catalogue.feature_index import FeatureIndex, open_index
from services.catalogue.feature_indexes import FeatureFilter, FeatureSort
from services.contracts.feature_card import FeatureCard, FeatureContext

SHOWN = {"top": 4, "middle": 1, "lower": 1}
TOKENS_SHOWN = 5

_HEADING = "## Feature {}"
_READING = "Reading: "


def live_features(index: FeatureIndex, count: int, seed: int) -> list[int]:
    """`count` features drawn from those that fire at all, in the order of their indices."""
    live = FeatureFilter(min_max_activation=5e-324)
    every = index.list(live, FeatureSort(), None, index.features).features
    numbers = [feature.index for feature in every]
    return sorted(random.Random(seed).sample(numbers, min(count, len(numbers))))  # noqa: S311 - to be repeatable


def page(index: FeatureIndex, count: int, seed: int, readings: Mapping[int, str]) -> str:
    """The whole page; `readings` by feature are put in."""
    features = live_features(index, count, seed)
    facts = index.facts
    drawn = (
        f"{len(features)} live features drawn with seed {seed} out of those that fire on any of the {facts.tokens} "
        f"tokens of {facts.documents} passages ({facts.tokens_over_norm} tokens are over the norm threshold). Nobody "
        "picked them, and the contexts stand as they are: the strongest of four passages, then one firing from the "
        "middle third and one from the lowest. The token with the activation is bold; ⏎ is a line break."
    )
    quoted = f"The passages belong to their authors, and are quoted under their licences. {_plain(facts.corpus)}."
    cards = [_feature(index.card(feature), readings.get(feature, "")) for feature in features]
    return "\n\n".join([f"# Random features of {index.sae}", drawn, quoted, *cards]) + "\n"


def readings_of(text: str) -> dict[int, str]:
    """The readings that stand on a page, by feature."""
    pattern = re.escape(_HEADING).replace(r"\{\}", r"(\d+)") + rf"\n.*?^{_READING.rstrip()}[ ]?(.*?)$"
    found = re.findall(pattern, text, re.MULTILINE | re.DOTALL)
    return {int(feature): reading.strip() for feature, reading in found if reading.strip()}


def _feature(card: FeatureCard, reading: str) -> str:
    promoted, suppressed = (
        ", ".join(_plain(token.token) for token in tokens[:TOKENS_SHOWN]) for tokens in (card.promoted, card.suppressed)
    )
    figures = (
        f"Fires on {card.density:.3%} of tokens; largest {card.max_activation:.1f}, mean {card.mean_activation:.1f}. "
        f"Promotes {promoted}; suppresses {suppressed}."
    )
    shown = [
        context
        for band, count in SHOWN.items()
        for context in [context for context in card.contexts if context.band == band][:count]
    ]
    rows = [
        f"| {context.activation:.1f} | {context.band} | {_passage(context)} | {_plain(context.document)} |"
        for context in shown
    ]
    return "\n".join(
        [
            _HEADING.format(card.index),
            "",
            figures,
            "",
            "| activation | band | context | passage |",
            "|---:|---|---|---|",
            *rows,
            "",
            (_READING + reading).rstrip(),
        ]
    )


def _passage(context: FeatureContext) -> str:
    before, peak, after = (
        _plain("".join(tokens))
        for tokens in (
            context.tokens[: context.position],
            context.tokens[context.position : context.position + 1],
            context.tokens[context.position + 1 :],
        )
    )
    return f"{before}<b>{peak}</b>{after}".strip()


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    escaped = re.sub(r"([\\`*_\[\]#|~$])", r"\\\1", html.escape(text, quote=False))
    return re.sub(r"\s*\n\s*", " ⏎ ", escaped)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m services.saes.index.sample", description=__doc__)
    parser.add_argument("index", type=Path, help="features.sqlite in its SAE's folder")
    parser.add_argument("--out", type=Path, required=True, help="the page; its readings are kept")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    readings = readings_of(arguments.out.read_text(encoding="utf-8")) if arguments.out.exists() else {}
    with closing(open_index(arguments.index)) as index:
        text = page(index, arguments.count, arguments.seed, readings)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
