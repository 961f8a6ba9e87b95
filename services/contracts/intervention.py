"""`intervention`: change any activations in one run, and read what becomes of it."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag
from typing_extensions import TypeAliasType

from services.contracts.base import Contract, Position, Request
from services.contracts.errors import ErrorCode, Violation
from services.contracts.inputs import Inputs
from services.contracts.metric import Metric
from services.contracts.model import ModelFacts
from services.contracts.place import Place, heads_of
from services.contracts.prompt import Example, Prompt
from services.contracts.result import PromptTokens, Result
from services.contracts.site import SiteName
from services.contracts.spec import Asked, Spec
from services.contracts.tensor import ScalarStatistic, Tensor

ATTENTION_SITES = (SiteName.ATTN_SCORES, SiteName.PATTERN)

VectorEntries = Annotated[tuple[float, ...], Field(min_length=1, max_length=100_000)]


class VectorValue(Request):
    """The same vector at every position: as wide as the site, d_model, d_mlp, or heads × d_head, head after head (only
    d_head where the intervention names a `head`)."""

    type: Literal["vector"]
    values: VectorEntries


class RunValue(Request):
    """The activation at the same site and positions in the unpatched run of another prompt.

    It needs as many tokens as the example, or, with `positions`, enough of them.
    """

    type: Literal["run"]
    prompt: Prompt


ValueObject = Annotated[VectorValue | RunValue, Field(discriminator="type")]


def _value_form(value: Any) -> str:
    return "number" if isinstance(value, int | float) else "object"


InterventionValue = TypeAliasType(
    "InterventionValue",
    Annotated[
        Annotated[float, Tag("number")] | Annotated[ValueObject, Tag("object")],
        Discriminator(_value_form),
    ],
)
"""A number for every coordinate, or an object tagged by `type`."""


class SiteIntervention(Place):
    """Replace an activation by a value, add a value to it, or multiply it by one, coordinate by coordinate.

    Interventions apply in their order. `pattern` can be scaled, set to 0 or to another run's, `attn_scores` scaled by a
    positive number or set to another run's: anything else would let a token attend to later ones, or changes nothing.
    """

    operation: Literal["set", "add", "scale"]
    value: InterventionValue

    def value_violations(self, facts: ModelFacts, pointer: str) -> Iterator[Violation]:
        """A value that does not fit the site or the operation."""
        try:
            site, _ = self.located()
        except KeyError:
            return
        if isinstance(self.value, RunValue) and self.operation == "scale":
            message = "a run's activation replaces another or is added to it: set `operation` to set or add"
            yield Violation(f"{pointer}/operation", ErrorCode.INVALID_REQUEST, message)
        if site in ATTENTION_SITES:
            if refusal := self._attention_refusal(site):
                yield Violation(f"{pointer}/value", ErrorCode.INVALID_REQUEST, refusal)
        elif isinstance(self.value, VectorValue):
            width, what = _width(site, self.head, facts)
            if len(self.value.values) != width:
                message = f"a vector of {len(self.value.values)} values: {site} of {facts.id} takes {what}"
                yield Violation(f"{pointer}/value/values", ErrorCode.INVALID_REQUEST, message)

    def run_violations(self, length: int, lengths: tuple[int, ...], pointer: str) -> Iterator[Violation]:
        """Another run of `length` tokens that lacks positions which examples of `lengths` ask of it."""
        site, _ = self.located()
        every = self.positions is None or site in ATTENTION_SITES
        for number, own in enumerate(lengths):
            message = ""
            if every and length != own:
                message = f"the prompt has {length} tokens and example {number} has {own}: they must be equally many"
            elif not every and length <= (last := max(self.indices(own) or ())):
                message = f"the prompt has {length} tokens, so nothing at position {last} as example {number} asks"
            if message:
                yield Violation(f"{pointer}/value/prompt", ErrorCode.UNEQUAL_LENGTHS, message)
                return

    def _attention_refusal(self, site: SiteName) -> str | None:
        """What is wrong with the value at an attention site; None for nothing."""
        match self.value:
            case VectorValue():
                return f"{site} is as wide as the prompt: it takes a number, or another run's (type run)"
            case RunValue():
                return None if self.operation == "set" else f"{site} of another run replaces this one's: set it"
            case number if site is SiteName.PATTERN:
                if self.operation == "scale" or (self.operation == "set" and number == 0):
                    return None
                return "a token would attend to later ones: set the pattern to 0, or scale it"
            case number:
                if self.operation == "scale" and number > 0:
                    return None
                return "a softmax ignores what all scores share, and masked ones must stay so: scale by more than 0"


def _width(site: SiteName, head: int | None, facts: ModelFacts) -> tuple[int, str]:
    """How many values a vector at `site` has, and how to say so."""
    heads = heads_of(site, facts)
    if heads and head is not None:
        return facts.d_head, f"d_head = {facts.d_head} for one head"
    if heads:
        width = heads * facts.d_head
        return width, f"{heads} heads × d_head {facts.d_head} = {width}, or {facts.d_head} with `head`"
    if site is SiteName.MLP_POST:
        return facts.d_mlp, f"d_mlp = {facts.d_mlp}"
    return facts.d_model, f"d_model = {facts.d_model}"


class InterventionSpec(Spec):
    """One patched run an example: `metric` reads it and the unpatched run, `top_k` the likeliest next tokens of both at
    `position`, `activations` what the patched run's activations are."""

    kind: Literal["intervention"]
    examples: Annotated[tuple[Example, ...], Field(min_length=1, max_length=1_000)]
    interventions: Annotated[tuple[SiteIntervention, ...], Field(min_length=1, max_length=256)]
    metric: Metric | None = None
    top_k: Annotated[int, Field(ge=0, le=100)] = 0
    position: Annotated[Position, Field(description="Where the top tokens are read.")] = -1
    activations: Annotated[tuple[Place, ...], Field(max_length=256)] = ()

    def asked(self) -> Asked:
        return Asked(
            examples=self.examples,
            references={f"/interventions/{index}/value/prompt": value.prompt for index, value in self.run_values()},
            metric=self.metric,
        )

    def run_values(self) -> Iterator[tuple[int, RunValue]]:
        """The values that another prompt's run has, by the index of their intervention."""
        for index, intervention in enumerate(self.interventions):
            if isinstance(intervention.value, RunValue):
                yield index, intervention.value

    def violations(self, facts: ModelFacts) -> Iterator[Violation]:
        """Places that the model lacks, values that do not fit them, and a job that reads nothing."""
        for index, intervention in enumerate(self.interventions):
            pointer = f"/interventions/{index}"
            yield from intervention.violations(facts, pointer, write=True)
            yield from intervention.value_violations(facts, pointer)
        for index, place in enumerate(self.activations):
            yield from place.violations(facts, f"/activations/{index}", write=False)
        if self.metric is None and not self.top_k and not self.activations:
            message = "nothing would be read: give `metric`, `top_k` or `activations`"
            yield Violation("", ErrorCode.INVALID_REQUEST, message)

    def input_violations(self, inputs: Inputs) -> Iterator[Violation]:
        """Positions that an example, or another run, does not have."""
        lengths = tuple(len(example.prompt.ids) for example in inputs.examples)
        for index, intervention in enumerate(self.interventions):
            yield from intervention.position_violations(lengths, f"/interventions/{index}")
        for index, place in enumerate(self.activations):
            yield from place.position_violations(lengths, f"/activations/{index}")
        for (index, _), run in zip(self.run_values(), inputs.references, strict=True):
            yield from self.interventions[index].run_violations(len(run.ids), lengths, f"/interventions/{index}")
        shortest = min(lengths)
        if self.top_k and not -shortest <= self.position < shortest:
            message = f"position {self.position} does not exist in a prompt of {shortest} tokens: 0..{shortest - 1}"
            yield Violation("/position", ErrorCode.UNKNOWN_POSITION, message)


class MetricChange(Contract):
    """The metric without and with the interventions; `effect` = patched − unpatched, in the metric's units."""

    unpatched: float
    patched: float
    effect: float


class PredictedToken(Contract):
    token_id: int
    token: str
    logit: float


class PredictedTokens(Contract):
    """The tokens of largest logit, largest first."""

    unpatched: tuple[PredictedToken, ...]
    patched: tuple[PredictedToken, ...]


class ChangedExample(Contract):
    """`activations` are the patched run's, after the interventions, in the order of the specification's."""

    tokens: PromptTokens
    metric: MetricChange | None
    top: PredictedTokens | None
    activations: tuple[Tensor, ...]


class InterventionResult(Result):
    kind: Literal["intervention"] = "intervention"
    examples: tuple[ChangedExample, ...]
    effect: Annotated[ScalarStatistic | None, Field(description="Over the examples; null without a metric.")]
