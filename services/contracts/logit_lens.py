"""`logit_lens`: what the model would say if it stopped after each layer."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from services.contracts.base import Contract, Layer, Position
from services.contracts.errors import ErrorCode, Violation
from services.contracts.inputs import Inputs
from services.contracts.metric import CrossEntropy, KlDivergence, Metric
from services.contracts.model import ModelFacts
from services.contracts.place import Place
from services.contracts.prompt import Example
from services.contracts.result import PromptTokens, Result
from services.contracts.spec import Asked, Spec
from services.contracts.tensor import Tensor

LensLayer = Layer | Literal["embed"]
"""`embed` is the residual stream before the first layer; a number is the one after that layer."""


class LogitLensSpec(Spec):
    """Every layer's residual stream through the model's own final norm, unembedding, logit scale and soft cap.

    Omitted `layers` are all of them, `embed` first; omitted `positions` are all of a prompt's. A metric is read at
    every layer and position, of the example's answer and foil.
    """

    kind: Literal["logit_lens"]
    examples: Annotated[tuple[Example, ...], Field(min_length=1, max_length=1_000)]
    metric: Metric | None = None
    top_k: Annotated[int, Field(ge=0, le=50, description="How many tokens to list per layer and position.")] = 5
    layers: Annotated[tuple[LensLayer, ...] | None, Field(min_length=1, max_length=1_001)] = None
    positions: Annotated[tuple[Position, ...] | None, Field(min_length=1, max_length=4_096)] = None

    def asked(self) -> Asked:
        return Asked(examples=self.examples, metric=self.metric)

    def read_layers(self, facts: ModelFacts) -> tuple[LensLayer, ...]:
        """The layers of its table."""
        return self.layers or ("embed", *range(facts.layers))

    def read_at(self) -> Place:
        """The positions of its table, as those of the last layer's residual stream."""
        return Place(site="resid_post", positions=self.positions)

    def violations(self, facts: ModelFacts) -> Iterator[Violation]:
        """Layers that do not exist, and metrics that are not of one position's logits."""
        for index, layer in enumerate(self.layers or ()):
            if layer != "embed" and layer >= facts.layers:
                message = (
                    f"layer {layer} does not exist: {facts.id} has layers 0..{facts.layers - 1}, and embed before them"
                )
                yield Violation(f"/layers/{index}", ErrorCode.UNKNOWN_LAYER, message)
        yield from self._metric_violations()

    def _metric_violations(self) -> Iterator[Violation]:
        match self.metric:
            case None:
                pass
            case KlDivergence():
                message = "logit_lens always reports `kl`, KL(final ‖ layer): leave the metric out, or take another"
                yield Violation("/metric/type", ErrorCode.UNSUPPORTED_METRIC, message)
            case CrossEntropy():
                message = "cross_entropy is of all positions together: take log_prob, of the answer at each position"
                yield Violation("/metric/type", ErrorCode.UNSUPPORTED_METRIC, message)
            case metric if metric.position != -1:
                message = (
                    "logit_lens reads the metric at each of its own `positions`: name them there, and leave the "
                    "metric's out"
                )
                yield Violation("/metric/position", ErrorCode.UNSUPPORTED_METRIC, message)

    def input_violations(self, inputs: Inputs) -> Iterator[Violation]:
        """Positions that some prompt lacks."""
        lengths = tuple(len(example.prompt.ids) for example in inputs.examples)
        yield from self.read_at().position_violations(lengths, "")


class LensToken(Contract):
    token_id: int
    token: str
    logit: float
    probability: float


class LensExample(Contract):
    """Axes of the tensors: [layer, position], labelled by the result's `layers` and this example's `positions`.

    `top` holds the tokens of largest logit, largest first, for each layer and in it each position. `entropy` of the
    layer's next-token distribution and `kl`, KL(final ‖ layer), are in nats; `kl` of the last layer is 0. `metric` is
    in the metric's own units.
    """

    tokens: PromptTokens
    positions: tuple[int, ...]
    top: tuple[tuple[tuple[LensToken, ...], ...], ...]
    entropy: Tensor
    kl: Tensor
    metric: Tensor | None


class LogitLensResult(Result):
    kind: Literal["logit_lens"] = "logit_lens"
    layers: tuple[int | str, ...]
    examples: tuple[LensExample, ...]
