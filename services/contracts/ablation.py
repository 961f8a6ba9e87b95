"""`ablation`: take parts of the model out and see what the metric loses."""

import random
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from services.contracts.base import CatalogueId, Contract, Position
from services.contracts.errors import ErrorCode, Violation
from services.contracts.feature_ablation import FeatureAblation
from services.contracts.inputs import Inputs
from services.contracts.metric import LogitDiff, Metric
from services.contracts.model import ModelFacts
from services.contracts.prompt import Example, Prompt
from services.contracts.references import Over, References, averaged_over, over_violations
from services.contracts.result import PromptTokens, Result
from services.contracts.sae import SaeFacts
from services.contracts.site import HEAD_SITES, SiteName
from services.contracts.spec import Asked, Spec
from services.contracts.sweep import Sweep
from services.contracts.tensor import Estimate

_ATTENTION_SITES = ("attn_scores", "pattern")


class AblationSweep(Sweep):
    """The cells of an ablation: as in patching, or with `at_once` every position of a cell in one run."""

    positions: Annotated[tuple[Position, ...] | None, Field(min_length=1, max_length=4_096)] = None
    at_once: Annotated[
        bool,
        Field(
            description="Ablate all positions, or all of `positions`, together instead of one a run. Sites with heads "
            "are ablated so anyway where `positions` is left out."
        ),
    ] = False

    def swept_positions(self, length: int) -> tuple[int | str, ...] | None:
        return None if self.at_once else super().swept_positions(length)

    def further_prompts(self) -> tuple[Prompt, ...]:
        """The prompts at `/method/references`."""
        return ()

    def input_violations(self, inputs: Inputs) -> Iterator[Violation]:
        """Positions that some example lacks, and a sweep over every position of examples of different lengths."""
        lengths = [len(example.prompt.ids) for example in inputs.examples]
        shortest, longest = min(lengths), max(lengths)
        if self.positions is None and not self.at_once and self.site not in HEAD_SITES and shortest != longest:
            message = (
                f"the examples have between {shortest} and {longest} tokens, so their positions do not correspond: "
                "list `positions` that all have, ablate all `at_once`, or send one job per length"
            )
            yield Violation("/method/positions", ErrorCode.UNEQUAL_LENGTHS, message)
        for index, position in enumerate(self.positions or ()):
            if not -shortest <= position < shortest:
                message = f"position {position} does not exist in a prompt of {shortest} tokens: 0..{shortest - 1}"
                yield Violation(f"/method/positions/{index}", ErrorCode.UNKNOWN_POSITION, message)
        for length in {*lengths} if self.at_once else ():
            if len({position % length for position in self.positions or ()}) < len(self.positions or ()):
                message = f"two of these positions are the same one in a prompt of {length} tokens"
                yield Violation("/method/positions", ErrorCode.UNKNOWN_POSITION, message)


class ZeroAblation(AblationSweep):
    """Set the activation to zero."""

    type: Literal["zero_ablation"]

    def violations(self, facts: ModelFacts, pointer: str) -> Iterator[Violation]:
        if self.site == "attn_scores":
            message = "scores of zero are equal attention to everything, not none: ablate the pattern"
            yield Violation(f"{pointer}/site", ErrorCode.UNKNOWN_SITE, message)
        yield from super().violations(facts, pointer)


class _FromReferences(AblationSweep):
    references: References

    def further_prompts(self) -> tuple[Prompt, ...]:
        return self.references

    def violations(self, facts: ModelFacts, pointer: str) -> Iterator[Violation]:
        if self.site in _ATTENTION_SITES:
            message = f"{self.site} is as wide as its prompt, so other prompts' does not fit: ablate z, or q, k and v"
            yield Violation(f"{pointer}/site", ErrorCode.UNKNOWN_SITE, message)
        yield from super().violations(facts, pointer)


class MeanAblation(_FromReferences):
    """Set the activation to its mean over `references`: at the same `position` of each, or over `all` positions of all.

    Left out, `over` is `position` where all references and examples have equally many tokens, else `all`. The first
    position is one of all, though its activations often are unlike the others'.
    """

    type: Literal["mean_ablation"]
    over: Over | None = None

    def averaged_over(self, inputs: Inputs) -> Over:
        """What `over` is for these inputs."""
        return averaged_over(self.over, inputs)

    def input_violations(self, inputs: Inputs) -> Iterator[Violation]:
        yield from super().input_violations(inputs)
        yield from over_violations(self.over, inputs)


class ResampleAblation(_FromReferences):
    """Set the activation to that of a drawn reference, `samples` times over, and average the effects.

    References are drawn in turn from a shuffled order, so that all come up equally often; one draw serves all cells of
    an example. A reference as long as the example gives each position its own activation there, another one the
    activation at a position drawn for each.
    """

    type: Literal["resample_ablation"]
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    samples: Annotated[int, Field(ge=1, le=100)] = 1

    def drawn(self, examples: int) -> tuple[tuple[int, ...], ...]:
        """The references that each of so many examples is given, by index: one a sample."""
        order = list(range(len(self.references)))
        random.Random(self.seed).shuffle(order)  # noqa: S311 - a reproducible draw, no secret
        draws = [order[number % len(order)] for number in range(examples * self.samples)]
        return tuple(
            tuple(draws[first : first + self.samples]) for first in range(0, examples * self.samples, self.samples)
        )


SweptAblation = ZeroAblation | MeanAblation | ResampleAblation
AblationMethod = Annotated[
    ZeroAblation | MeanAblation | ResampleAblation | FeatureAblation, Field(discriminator="type")
]


class AblationSpec(Spec):
    kind: Literal["ablation"]
    method: AblationMethod
    examples: Annotated[tuple[Example, ...], Field(min_length=1, max_length=1_000)]
    metric: Metric = LogitDiff()
    per_example: Annotated[bool, Field(description="Also report every example's own effects.")] = False

    def asked(self) -> Asked:
        references = enumerate(self.method.further_prompts())
        return Asked(
            examples=self.examples,
            references={f"/method/references/{index}": prompt for index, prompt in references},
            metric=self.metric,
        )

    def sae_id(self) -> CatalogueId | None:
        return self.method.sae if isinstance(self.method, FeatureAblation) else None

    def sae_pointer(self) -> str:
        return "/method/sae"

    def writes_features(self) -> bool:
        return isinstance(self.method, FeatureAblation)

    def sae_violations(self, sae: SaeFacts) -> Iterator[Violation]:
        if isinstance(self.method, FeatureAblation):
            yield from self.method.sae_violations(sae)

    def violations(self, facts: ModelFacts) -> Iterator[Violation]:
        """What this model cannot do: layers and heads that do not exist, a site it lacks or that cannot be ablated."""
        if isinstance(self.method, FeatureAblation):
            yield from self.method.metric_violations(self.metric)
        yield from self.method.violations(facts, "/method")

    def input_violations(self, inputs: Inputs) -> Iterator[Violation]:
        yield from self.method.input_violations(inputs)


class AblatedExample(Contract):
    tokens: PromptTokens
    baseline: Annotated[float, Field(description="The metric on the whole model.")]
    effects: Estimate | None = None


class AblationResult(Result):
    """Of a swept site. `effects` = m(ablated) − m(whole) in the metric's units, over the samples of a resample ablation
    their mean.

    `layers`, `heads` and `positions` label the axes named in `dims`.
    """

    kind: Literal["ablation"] = "ablation"
    method: Literal["zero_ablation", "mean_ablation", "resample_ablation"]
    site: SiteName
    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    positions: tuple[int, ...] | None = None
    over: Annotated[Over | None, Field(description="What a mean ablation averaged over.")] = None
    seed: int | None = None
    examples: tuple[AblatedExample, ...]
    effects: Estimate
