"""One feature's figures and contexts, from its firings.

1. The strongest firing of every document; the TOP strongest of those, each with what the model read around it.
2. The firings by strength in three thirds, `upper`, `middle` and `lower`: PER_BAND of each, drawn with a seed from
   documents that are not shown yet.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from services.catalogue.feature_file import BANDS, FeatureRecord, Places, Ranked
from services.saes.index.corpus import IndexCorpus
from services.saes.index.firings import FeatureFirings

TOP = 20
PER_BAND = 3
DRAWN_PER_BAND = 64
"""Firings looked at for the PER_BAND that lie in documents of their own."""

EITHER_SIDE = 12
BINS = 20


def describe(
    firings: FeatureFirings,
    corpus: IndexCorpus,
    *,
    promoted: Ranked,
    suppressed: Ranked,
    nearest_by_decoder: Ranked,
    nearest_by_coactivation: Ranked,
) -> FeatureRecord:
    """A feature as the index stores it; the mean is over the tokens on which it fires."""
    tokens, values = firings.tokens, firings.values.astype(np.float64)
    largest = float(values.max()) if len(values) else 0.0
    histogram, _ = np.histogram(values, BINS, (0.0, largest)) if len(values) else (np.zeros(0), None)
    chosen = [(firing, band) for band, firing in _chosen(firings, corpus)]
    windows = [corpus.window(int(tokens[firing]), EITHER_SIDE) for firing, _ in chosen]
    return FeatureRecord(
        active_tokens=len(tokens),
        max_activation=largest,
        mean_activation=float(values.mean()) if len(values) else 0.0,
        histogram=histogram.astype(np.uint32),
        places=Places(
            starts=np.array([start for start, _ in windows], np.uint32),
            lengths=np.array([end - start for start, end in windows], np.uint8),
            peaks=np.array(
                [tokens[firing] - start for (firing, _), (start, _) in zip(chosen, windows, strict=True)], np.uint8
            ),
            bands=np.array([band for _, band in chosen], np.uint8),
        ),
        activations=np.concatenate([np.zeros(0, np.float32), *(_within(firings, *window) for window in windows)]),
        promoted=promoted,
        suppressed=suppressed,
        nearest_by_decoder=nearest_by_decoder,
        nearest_by_coactivation=nearest_by_coactivation,
    )


def _chosen(firings: FeatureFirings, corpus: IndexCorpus) -> Iterator[tuple[int, int]]:
    """(band, firing) of every context, in the order in which they are stored."""
    documents = corpus.document_of[firings.tokens]
    descending = np.lexsort((firings.tokens, -firings.values))
    _, strongest = np.unique(documents[descending], return_index=True)
    top = descending[np.sort(strongest)[:TOP]]
    shown = set(documents[top].tolist())
    yield from ((0, int(firing)) for firing in top)
    rng = np.random.default_rng(firings.feature)
    for band, third in enumerate(np.array_split(descending, len(BANDS) - 1), start=1):
        drawn = rng.choice(third, min(len(third), DRAWN_PER_BAND), replace=False)
        taken = list(_of_new_documents(drawn, documents, shown))
        yield from ((band, firing) for firing in sorted(taken, key=lambda firing: -firings.values[firing]))


def _of_new_documents(drawn: NDArray[np.int64], documents: NDArray[np.int64], shown: set[int]) -> Iterator[int]:
    left = PER_BAND
    for firing in drawn.tolist():
        document = int(documents[firing])
        if left and document not in shown:
            shown.add(document)
            left -= 1
            yield firing


def _within(firings: FeatureFirings, start: int, end: int) -> NDArray[np.float32]:
    """The feature's activations on tokens start..end−1 of the corpus."""
    first, last = np.searchsorted(firings.tokens, (start, end))
    activations = np.zeros(end - start, np.float32)
    activations[firings.tokens[first:last] - start] = firings.values[first:last]
    return activations
