"""What is read off a run's logits: never more than was asked for.

Positions are absolute, from 0. Logits are the model's own, after a final soft cap where the family has one.
"""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class TokenLogits:
    """Logits of `tokens` at `position`, in their order; of the whole vocabulary for None: `Float[Tensor, "token"]`."""

    position: int
    tokens: tuple[int, ...] | None


@dataclass(frozen=True)
class TokenLogProbs:
    """Log probabilities of `tokens` (None: of all) at `position`, in nats: `Float[Tensor, "token"]`."""

    position: int
    tokens: tuple[int, ...] | None


@dataclass(frozen=True)
class Divergence:
    """KL(unpatched run of `reference` ‖ this run) of the next-token distributions at `position`, in nats: a scalar."""

    position: int
    reference: tuple[int, ...]


@dataclass(frozen=True)
class Loss:
    """Mean cross-entropy of `targets[t]` as the token that follows position t, over all targets, in nats: a scalar.

    `tokens[1:]` of some run is the usual choice; there may be fewer targets than positions.
    """

    targets: tuple[int, ...]


@dataclass(frozen=True)
class TextLogProbs:
    """Log probability of each of `targets`, of `targets[t]` as the token that follows position `position` + t, in nats:
    `Float[Tensor, "target"]`."""

    position: int
    targets: tuple[int, ...]


@dataclass(frozen=True)
class TopK:
    """The `k` tokens of largest logit at `position`, largest first: a `TopTokens`."""

    position: int
    k: int


Readout = TokenLogits | TokenLogProbs | TextLogProbs | Divergence | Loss | TopK


@dataclass(frozen=True, eq=False)
class TopTokens:
    tokens: Int[Tensor, " k"]
    logits: Float[Tensor, " k"]


Reading = Float[Tensor, "..."] | TopTokens
"""What a readout yields: float32 on the CPU."""
