"""`direction`: a direction in a model's activations that tells two sets of prompts apart."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from services.contracts.base import Contract, Layer, Position, Request
from services.contracts.errors import ErrorCode, Violation
from services.contracts.inputs import Inputs
from services.contracts.model import ModelFacts
from services.contracts.place import layer_violations, site_violations
from services.contracts.prompt import Prompt
from services.contracts.result import PromptTokens, Result
from services.contracts.spec import Asked, Spec
from services.contracts.steering import DirectionSite
from services.contracts.tensor import Tensor

Prompts = Annotated[tuple[Prompt, ...], Field(min_length=1, max_length=500)]


class DifferenceOfMeans(Request):
    """mean of the positive activations − mean of the negative ones (Marks and Tegmark 2023, arXiv:2310.06824; for
    steering Turner et al. 2023, arXiv:2308.10248; Arditi et al. 2024, arXiv:2406.11717)."""

    type: Literal["difference_of_means"]


class HeldOut(Request):
    """How much of each set is kept from the direction that is tried on it."""

    fraction: Annotated[float, Field(ge=0.05, le=0.95)] = 0.25
    seed: Annotated[int, Field(ge=0, le=2**53)] = 0


class DirectionSpec(Spec):
    """A direction per layer, from `negative` to `positive`, of one activation per prompt.

    `position`: `last`; an index, from the end with negatives; `mean`, over all positions but 0, where in most models
    an activation much longer than all others sits. `normalize` makes the vectors one long.
    """

    kind: Literal["direction"]
    method: DifferenceOfMeans = DifferenceOfMeans(type="difference_of_means")
    site: DirectionSite = "resid_post"
    layers: Annotated[
        tuple[Layer, ...] | None, Field(min_length=1, max_length=1_000, description="Null for all layers.")
    ] = None
    position: Literal["last", "mean"] | Position = "last"
    positive: Prompts
    negative: Prompts
    normalize: bool = False
    held_out: HeldOut | None = None

    def asked(self) -> Asked:
        return Asked(
            references={
                f"/{name}/{index}": prompt
                for name, prompts in (("positive", self.positive), ("negative", self.negative))
                for index, prompt in enumerate(prompts)
            }
        )

    def layers_of(self, facts: ModelFacts) -> tuple[int, ...]:
        """The layers asked for."""
        return tuple(range(facts.layers)) if self.layers is None else self.layers

    def violations(self, facts: ModelFacts) -> Iterator[Violation]:
        """Layers or a site that the model lacks; sets too small to keep something of."""
        yield from site_violations(self.site, facts, "/site", write=False)
        yield from layer_violations(self.layers or (), facts, "/layers")
        if len(set(self.layers or ())) < len(self.layers or ()):
            yield Violation("/layers", ErrorCode.INVALID_REQUEST, "two of these layers are the same")
        for name, prompts in (("positive", self.positive), ("negative", self.negative)):
            if self.held_out is not None and len(prompts) < 2:
                message = "one prompt cannot be both in the direction and kept from it: give more, or no `held_out`"
                yield Violation(f"/{name}", ErrorCode.INVALID_REQUEST, message)

    def input_violations(self, inputs: Inputs) -> Iterator[Violation]:
        """Prompts that lack the position."""
        for pointer, prompt in zip(self.asked().references, inputs.references, strict=True):
            length = len(prompt.ids)
            if self.position == "mean" and length < 2:
                message = "the mean leaves position 0 out: the prompt needs a second token"
                yield Violation(pointer, ErrorCode.UNKNOWN_POSITION, message)
            elif isinstance(self.position, int) and not -length <= self.position < length:
                message = f"the prompt has {length} tokens and no position {self.position}"
                yield Violation(pointer, ErrorCode.UNKNOWN_POSITION, message)


class Projections(Contract):
    """x·d̂ over one set of prompts, d̂ the direction made one long; the deviation is null for a single prompt."""

    mean: float
    standard_deviation: float | None
    count: int


class Separation(Contract):
    """How well x·d̂ tells the sets apart.

    `auroc`: the probability that a positive prompt's is larger than a negative one's, ties counted half. `d_prime`: the
    difference of the means over the root mean square of the two standard deviations; null where those are null or 0.
    """

    positive: Projections
    negative: Projections
    auroc: float
    d_prime: float | None


class LayerDirection(Contract):
    """`norm`: of the difference of means. `mean_norm`: of the activations it was taken of, over both sets.

    `separation` is of the very prompts that the direction was made of, and flatters it: `held_out` has those kept from
    a direction made of the others alone; null where it was not asked for.
    """

    layer: int
    norm: float
    mean_norm: float
    separation: Separation
    held_out: Separation | None = None


class ProjectedSet(Contract):
    """`projections`: [layer, prompt], x·d̂ on the direction of all prompts. `held_out`: the places of prompts kept."""

    tokens: tuple[PromptTokens, ...]
    projections: Tensor
    held_out: tuple[int, ...] = ()


class DirectionResult(Result):
    """`vectors`: [layer, d_model], one row per entry of `layers`, of all prompts of both sets."""

    kind: Literal["direction"] = "direction"
    method: Literal["difference_of_means"]
    site: DirectionSite
    position: Literal["last", "mean"] | int
    normalized: bool
    vectors: Tensor
    layers: tuple[LayerDirection, ...]
    positive: ProjectedSet
    negative: ProjectedSet
