"""From log probabilities to the next token."""

import hashlib

import torch
from jaxtyping import Float
from torch import Tensor

from services.engine.decoding import Greedy, Sampled


def choose(log_probs: Float[Tensor, " vocabulary"], sampling: Greedy | Sampled, step: int) -> int:
    """The token number `step` of a text, given the distribution at temperature 1."""
    if isinstance(sampling, Greedy):
        return int(log_probs.argmax())
    scores = (log_probs.double() - log_probs.max()) / sampling.temperature
    kept = _nucleus(_top(scores, sampling.top_k), sampling.top_p)
    cumulative = kept.cumsum(0)
    drawn = _uniform(sampling.seed, step) * cumulative[-1:]
    return int(torch.searchsorted(cumulative, drawn, right=True).clamp_max(_last(kept)))


def _top(scores: Float[Tensor, " vocabulary"], k: int | None) -> Float[Tensor, " vocabulary"]:
    """Probabilities, of the `k` largest scores alone."""
    if k is not None and k < len(scores):
        top = scores.topk(k)
        scores = torch.full_like(scores, -torch.inf).scatter(0, top.indices, top.values)
    return scores.softmax(0)


def _nucleus(probabilities: Float[Tensor, " vocabulary"], p: float) -> Float[Tensor, " vocabulary"]:
    """The fewest that hold at least `p` together, the others 0."""
    if p >= 1:
        return probabilities
    ordered = probabilities.sort(descending=True)
    before = ordered.values.cumsum(0) - ordered.values
    return torch.zeros_like(probabilities).scatter(0, ordered.indices, ordered.values.where(before < p, 0.0))


def _last(probabilities: Float[Tensor, " vocabulary"]) -> int:
    """The last token that can be drawn at all."""
    return int(probabilities.nonzero()[-1])


def _uniform(seed: int, step: int) -> Float[Tensor, "1"]:
    """A number in [0, 1) of this seed and step: a failed step can be repeated, and steps need no common state."""
    digest = hashlib.sha256(f"{seed} {step}".encode()).digest()
    return torch.tensor([int.from_bytes(digest[:6]) / 2**48], dtype=torch.float64)
