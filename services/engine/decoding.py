"""Token-by-token decoding as data: how a text goes on, with interventions at every new token.

A `Continuation` holds no callback, so steps of different jobs share batches. Positions are absolute, from 0: the prompt
has 0..n-1, the first new token n. The last new token is read off, and never run itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from services.engine.outcome import Execution
from services.engine.row import FeatureChange, Intervention, Operation, Site


@dataclass(frozen=True)
class Greedy:
    """The token of largest logit."""


@dataclass(frozen=True)
class Sampled:
    """A token drawn from softmax(logits / temperature), after that cut to the `top_k` likeliest tokens, and then to the
    fewest of those that hold at least `top_p` of what is left.

    A draw depends on `seed`, the number of the new token, and the logits: never on what else is in the batch.
    """

    seed: int
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0


@dataclass(frozen=True, eq=False)
class Onward:
    """Change the activation at `site` of every position from `first` on, of prompt and new tokens.

    `value` is a number, a tensor without a position axis, or how features change.
    """

    site: Site
    first: int
    operation: Operation
    value: Tensor | float | FeatureChange


@dataclass(frozen=True, eq=False)
class Continuation:
    """A prompt, and how it goes on.

    An `Intervention` at all positions means those of new tokens too, and explicit positions may lie behind the prompt;
    activations of another run are taken at positions of the prompt alone. At `attn_scores` and `pattern`, whose keys
    grow in number, values are numbers. A token of `stop` ends the text, and is its last.
    """

    tokens: tuple[int, ...]
    max_new_tokens: int
    interventions: tuple[Intervention | Onward, ...] = ()
    stop: frozenset[int] = frozenset()
    sampling: Greedy | Sampled = Greedy()

    def reach(self, context: int) -> int:
        """Positions that are run when nothing stops it early."""
        return min(context, len(self.tokens) + self.max_new_tokens - 1)


StopReason = Literal["stop_token", "max_new_tokens", "context"]


@dataclass(frozen=True)
class Generated:
    """The new tokens and the log probability of each: nats, at temperature 1, in the run with its interventions."""

    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    stopped: StopReason
    execution: Execution


OnToken = Callable[[int, int, float], None]
"""Hears of every new token: the continuation's index, the token, its log probability. On the engine's thread: it must
return at once."""
