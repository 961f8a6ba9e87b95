"""How faithful an SAE is to activations: sums over tokens, in float64, and the figures that they make.

MSE                 Σ|x − x̂|² / (tokens · width)
explained variance  1 − Σ|x − x̂|² / Σ|x − mean|²
density of i        fraction of tokens on which feature i fires

x is what the SAE reads; of a transcoder, what it is to rebuild at its output.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from services.saes.sae import Sae

DENSE = 0.1
"""A feature that fires on more than this fraction of tokens is dense."""

LOWEST_LOG10, BINS_PER_DECADE = -5, 4

Vector = Float64[Tensor, " d_out"]


class Fidelity:
    """Figures of the tokens that were added; those of none are null."""

    def __init__(self, d_out: int, d_sae: int) -> None:
        self.tokens = 0
        self.fired: Int[Tensor, " d_sae"] = torch.zeros(d_sae, dtype=torch.int64)
        self._squared_error = 0.0
        self._cosine = 0.0
        self._squared_norm = 0.0
        self._sum: Vector = torch.zeros(d_out, dtype=torch.float64)

    def add(
        self, sae: Sae, x: Float[Tensor, "token d_in"], target: Float[Tensor, "token d_out"] | None = None
    ) -> Float[Tensor, "token d_out"]:
        """Encodes the tokens and accounts for them; returns the reconstruction, of x where no `target` is given."""
        features = sae.encode(x)
        reconstruction = sae.decode(features, x)
        exact, rebuilt = (x if target is None else target).double(), reconstruction.double()
        self.tokens += len(x)
        self.fired += (features > 0).sum(0).cpu()
        self._squared_error += float((exact - rebuilt).square().sum())
        self._cosine += float(torch.cosine_similarity(exact, rebuilt, dim=-1).sum())
        self._squared_norm += float(exact.square().sum())
        self._sum += exact.sum(0).cpu()
        return reconstruction

    def state(self) -> dict[str, Tensor]:
        """The sums so far, exactly: what `restore` goes on from."""
        numbers = [self.tokens, self._squared_error, self._cosine, self._squared_norm]
        return {"fired": self.fired, "sum": self._sum, "numbers": torch.tensor(numbers, dtype=torch.float64)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Put the sums of `state` in the place of these."""
        tokens, self._squared_error, self._cosine, self._squared_norm = state["numbers"].tolist()
        self.tokens, self.fired, self._sum = int(tokens), state["fired"], state["sum"]

    @property
    def l0(self) -> float | None:
        return float(self.fired.sum()) / self.tokens if self.tokens else None

    @property
    def mse(self) -> float | None:
        return self._squared_error / self.tokens / len(self._sum) if self.tokens else None

    @property
    def cosine(self) -> float | None:
        return self._cosine / self.tokens if self.tokens else None

    @property
    def mean(self) -> Vector | None:
        """Of the tokens' activations."""
        return self._sum / self.tokens if self.tokens else None

    def explained_variance(self, mean: Float[Tensor, " d_out"] | None) -> float | None:
        """Of the variance around `mean`; null where there is none."""
        if mean is None or not self.tokens:
            return None
        mean = mean.double().cpu()
        spread = self._squared_norm - 2 * float(mean @ self._sum) + self.tokens * float(mean @ mean)
        return 1 - self._squared_error / spread if spread > 1e-12 * self._squared_norm else None

    @property
    def densities(self) -> Float64[Tensor, " d_sae"]:
        return self.fired.double() / max(1, self.tokens)

    @property
    def dead_fraction(self) -> float | None:
        return float((self.fired == 0).double().mean()) if self.tokens else None

    @property
    def dense_fraction(self) -> float | None:
        return float((self.densities > DENSE).double().mean()) if self.tokens else None

    def density_histogram(self) -> tuple[tuple[float, ...], tuple[int, ...]]:
        """(edges in log10, counts) of the features that fire; those below the first edge are in the first bin."""
        bins = -LOWEST_LOG10 * BINS_PER_DECADE
        edges = tuple(LOWEST_LOG10 + index / BINS_PER_DECADE for index in range(bins + 1))
        alive = self.densities[self.fired > 0].log10()
        inner = torch.tensor(edges[1:-1], dtype=torch.float64)
        counts = torch.bucketize(alive, inner, right=True).bincount(minlength=bins)
        return edges, tuple(counts.tolist())
