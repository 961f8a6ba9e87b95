"""Which features fired on which tokens and how strongly: written to disk token by token, read back feature by feature.

Three flat files per SAE, appended to after each batch of rows and cut back to the last whole batch after a crash:

    counts.i32      how many features fired on each token; −1 where its norm is over the SAE's threshold
    features.u32    their indices, token after token
    values.f32      their activations
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from services.saes.sae import Sae

ENCODED_AT_ONCE = 1 << 24
"""Activations of features in memory at once: bounds what a wide dictionary takes."""


@dataclass(frozen=True)
class Bounds:
    """How many firings are looked at at once: read from the record, sorted by feature, and counted for one feature."""

    scanned: int = 1 << 22
    sorted: int = 1 << 23
    coactive: int = 1 << 23


_COUNTS, _FEATURES, _VALUES = "counts.i32", "features.u32", "values.f32"
OVER_NORM = -1


class FiringsWriter:
    """Appends to the record of one SAE."""

    def __init__(self, folder: Path, tokens: int, firings: int) -> None:
        """Goes on after `tokens` tokens with `firings` firings; what lies beyond them is dropped."""
        folder.mkdir(parents=True, exist_ok=True)
        self._files = {name: (folder / name).open("ab") for name in (_COUNTS, _FEATURES, _VALUES)}
        for name, length in ((_COUNTS, tokens), (_FEATURES, firings), (_VALUES, firings)):
            self._files[name].truncate(4 * length)
        self.firings = firings

    def append(self, sae: Sae, x: Float[Tensor, "token d_model"]) -> None:
        """Encode the tokens' activations, those over the norm threshold left out, and write down what fires."""
        at_once = max(1, ENCODED_AT_ONCE // sae.d_sae)
        for start in range(0, len(x), at_once):
            part = x[start : start + at_once]
            counted = sae.within_norm(part)
            features = sae.encode(part) * counted[:, None]
            tokens, indices = (features > 0).nonzero(as_tuple=True)
            counts = torch.bincount(tokens, minlength=len(part))
            counts[~counted] = OVER_NORM
            self._files[_COUNTS].write(counts.cpu().numpy().astype(np.int32).tobytes())
            self._files[_FEATURES].write(indices.cpu().numpy().astype(np.uint32).tobytes())
            self._files[_VALUES].write(features[tokens, indices].float().cpu().numpy().tobytes())
            self.firings += len(indices)

    def flush(self) -> None:
        """What was appended is on the disk when this returns."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        for file in self._files.values():
            file.close()


@dataclass(frozen=True, eq=False)
class FeatureFirings:
    """One feature's firings: tokens of the corpus, ascending, and activations [firing]."""

    feature: int
    tokens: NDArray[np.int64]
    values: NDArray[np.float32]


class Firings:
    """The whole record of one SAE, on disk."""

    def __init__(self, folder: Path, features: int, bounds: Bounds | None = None) -> None:
        self._folder, self._features = folder, features
        self._bounds = bounds or Bounds()
        self._counts = np.fromfile(folder / _COUNTS, np.int32)

    @property
    def tokens_over_norm(self) -> int:
        return int((self._counts == OVER_NORM).sum())

    @cached_property
    def by_feature(self) -> NDArray[np.int64]:
        """[feature]: on how many tokens it fires."""
        totals = np.zeros(self._features, np.int64)
        for start in range(0, len(self._indices), self._bounds.scanned):
            totals += np.bincount(self._indices[start : start + self._bounds.scanned], minlength=self._features)
        return totals

    def features(self) -> Iterator[FeatureFirings]:
        """Every feature in turn. The record is scanned once for each block of features that fits in memory."""
        for first, end in self._blocks():
            tokens, indices, values = self._gathered(first, end)
            order = np.argsort(indices, kind="stable")
            bounds = np.cumsum([0, *self.by_feature[first:end]])
            for feature in range(first, end):
                chosen = order[bounds[feature - first] : bounds[feature - first + 1]]
                yield FeatureFirings(feature, tokens[chosen], values[chosen])

    def together_with(self, firings: FeatureFirings) -> NDArray[np.float64]:
        """[feature]: the Jaccard index of firing with this one, 0 for itself.

        Of a feature that fires very often, evenly spaced firings stand for all: their counts are scaled up.
        """
        found = np.zeros(self._features)
        if not len(firings.tokens):
            return found
        step = -(-int(self._fired[firings.tokens].sum()) // self._bounds.coactive)
        tokens = firings.tokens[::step]
        lengths = self._fired[tokens]
        offsets = np.repeat(self._offsets[tokens] - np.cumsum(lengths) + lengths, lengths)
        counts = np.bincount(self._indices[offsets + np.arange(len(offsets))], minlength=self._features)
        both = counts * (len(firings.tokens) / len(tokens))
        np.divide(both, self.by_feature + len(firings.tokens) - both, out=found, where=both > 0)
        found[firings.feature] = 0.0
        return found

    def _blocks(self) -> Iterator[tuple[int, int]]:
        ends = np.cumsum(self.by_feature)
        first = 0
        while first < self._features:
            before = int(ends[first - 1]) if first else 0
            end = max(first + 1, int(np.searchsorted(ends, before + self._bounds.sorted, side="right")))
            yield first, end
            first = end

    def _gathered(self, first: int, end: int) -> tuple[NDArray[np.int64], NDArray[Any], NDArray[np.float32]]:
        """Tokens, features and values of the firings of features first..end−1."""
        tokens, indices, values = [], [], []
        for start in range(0, len(self._indices), self._bounds.scanned):
            piece = self._indices[start : start + self._bounds.scanned]
            places = start + np.flatnonzero((piece >= first) & (piece < end))
            tokens.append(np.searchsorted(self._offsets, places, side="right") - 1)
            indices.append(self._indices[places])
            values.append(self._values[places])
        if not tokens:
            return np.zeros(0, np.int64), np.zeros(0, np.uint32), np.zeros(0, np.float32)
        return np.concatenate(tokens), np.concatenate(indices), np.concatenate(values)

    @cached_property
    def _fired(self) -> NDArray[np.int64]:
        return np.maximum(self._counts, 0).astype(np.int64)

    @cached_property
    def _offsets(self) -> NDArray[np.int64]:
        """[token]: where its firings begin."""
        return np.cumsum(self._fired) - self._fired

    @cached_property
    def _indices(self) -> NDArray[np.uint32]:
        return _mapped(self._folder / _FEATURES, np.uint32)

    @cached_property
    def _values(self) -> NDArray[np.float32]:
        return _mapped(self._folder / _VALUES, np.float32)


def _mapped(path: Path, dtype: type[Any]) -> NDArray[Any]:
    """The file as an array that stays on the disk; an empty file cannot be mapped."""
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.zeros(0, dtype)
