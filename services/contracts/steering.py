"""What a text is steered by: features of an SAE, directions, heads taken out; and how much of each."""

import math
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from services.contracts.base import CatalogueId, Contract, Head, Layer, Request
from services.contracts.errors import ErrorCode, Violation
from services.contracts.model import ModelFacts
from services.contracts.place import head_violations, layer_violations, site_violations
from services.contracts.sae import SaeFacts
from services.contracts.site import SiteName

MAX_LENGTH = 1e15
"""How long a vector may be that is added: squares of more than a few times 1e18 are infinite in float32."""

FeatureIndex = Annotated[int, Field(ge=0, le=10_000_000)]
Amount = Annotated[
    float | None,
    Field(description="What strength 1 adds or clamps to, in the job's `unit`; 1 if left out. None where it has none."),
]
DirectionSite = Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"]
"""Sites as wide as the residual stream."""


class FeatureSteering(Request):
    """A feature f with decoder row d, at the SAE's site: `add` x + α d; `clamp` x + (v − f(x)) d; `ablate` clamps to 0;
    `project_out` x − (x·d̂) d̂, d̂ being d made one long: whatever lies along d goes, f's or not.

    A job's features change together, by the sum of these changes. All are of the activation as it comes to the site:
    f(x) is encoded once, and nothing again after a change. Features that are projected out together lose x's part in
    the span of their d. Tokens over the SAE's norm threshold are left alone.
    """

    type: Literal["feature"]
    sae: CatalogueId
    index: FeatureIndex
    operation: Literal["add", "clamp", "ablate", "project_out"] = "add"
    value: Amount = None

    @property
    def scaled(self) -> bool:
        """Whether a strength changes anything."""
        return self.operation in ("add", "clamp")

    def violations(self, facts: ModelFacts, pointer: str) -> Iterator[Violation]:
        """An amount where nothing has one."""
        del facts
        if not self.scaled and self.value is not None:
            yield _amountless(pointer, self.operation)

    def sae_violations(self, sae: SaeFacts, pointer: str) -> Iterator[Violation]:
        """A feature that the SAE does not have."""
        if self.index >= sae.features:
            message = f"feature {self.index} does not exist: {sae.id} has features 0..{sae.features - 1}"
            yield Violation(f"{pointer}/index", ErrorCode.UNKNOWN_FEATURE, message)


class DirectionSteering(Request):
    """A direction d, `values`, at a site: `add` x + α d; `clamp` x + (v − x·d̂) d̂; `project_out` x − (x·d̂) d̂, which is
    what ablating a direction is. d̂ is d made one long, so that v does not depend on the length of d.

    The `vectors` of a `direction` job are such values.
    """

    type: Literal["direction"]
    site: DirectionSite = "resid_post"
    layer: Layer
    values: Annotated[tuple[float, ...], Field(min_length=1, max_length=100_000)]
    operation: Literal["add", "clamp", "project_out"] = "add"
    value: Amount = None

    @property
    def scaled(self) -> bool:
        """Whether a strength changes anything."""
        return self.operation != "project_out"

    @property
    def length(self) -> float:
        """Of d."""
        return math.hypot(*self.values)

    @property
    def length_per_amount(self) -> float:
        """How long the vector is that an amount of 1 stands for: d, or d̂."""
        return 1.0 if self.operation == "clamp" else self.length

    def violations(self, facts: ModelFacts, pointer: str) -> Iterator[Violation]:
        """A layer or site that the model lacks, values as wide as no residual stream, or none to project out."""
        yield from site_violations(self.site, facts, f"{pointer}/site", write=True)
        yield from layer_violations((self.layer,), facts, f"{pointer}/layer")
        if len(self.values) != facts.d_model:
            message = f"a direction of {len(self.values)} values: {self.site} of {facts.id} is {facts.d_model} wide"
            yield Violation(f"{pointer}/values", ErrorCode.INVALID_REQUEST, message)
        if self.length > MAX_LENGTH or any(abs(value) > MAX_LENGTH for value in self.values):
            message = f"a direction longer than {MAX_LENGTH:g} overflows in the model: scale it down"
            yield Violation(f"{pointer}/values", ErrorCode.INVALID_REQUEST, message)
        elif self.length < 1 / MAX_LENGTH:
            message = f"a direction shorter than {1 / MAX_LENGTH:g} points nowhere: scale it up"
            yield Violation(f"{pointer}/values", ErrorCode.INVALID_REQUEST, message)
        if not self.scaled and self.value is not None:
            yield _amountless(pointer, self.operation)


class HeadSteering(Request):
    """A head's output z set to 0."""

    type: Literal["head"]
    layer: Layer
    head: Head
    operation: Literal["ablate"] = "ablate"

    @property
    def scaled(self) -> bool:
        """A strength changes nothing here."""
        return False

    def violations(self, facts: ModelFacts, pointer: str) -> Iterator[Violation]:
        """A layer or head that the model lacks."""
        yield from site_violations(SiteName.Z, facts, f"{pointer}/head", write=True)
        yield from layer_violations((self.layer,), facts, f"{pointer}/layer")
        yield from head_violations((self.head,), SiteName.Z, facts, f"{pointer}/head")


Steering = Annotated[FeatureSteering | DirectionSteering | HeadSteering, Field(discriminator="type")]

Unit = Literal["activation", "mean_norm"]


def overflows(steering: Steering, strength: float, unit: Unit) -> bool:
    """Whether what is added at this strength is too long for the model's arithmetic, whatever its activations are."""
    if isinstance(steering, HeadSteering) or not steering.scaled:
        return False
    amount = abs(strength * (1.0 if steering.value is None else steering.value))
    if isinstance(steering, FeatureSteering) or unit == "mean_norm":
        return not amount <= MAX_LENGTH
    return steering.length <= MAX_LENGTH and not amount * steering.length_per_amount <= MAX_LENGTH


class AppliedSteering(Contract):
    """One item of `steering` as it was done.

    `amount`: what strength 1 adds or clamps to, α or v in the item's own formula: activation of the feature, multiples
    of the direction as given, or the activation's coordinate along it when that is clamped. `mean_norm`: of the
    activations at its site, in the unsteered runs of the prompts, without position 0 and without tokens over the SAE's
    norm threshold; null in the unit `activation`.
    """

    type: Literal["feature", "direction", "head"]
    site: SiteName
    layer: int
    index: Annotated[int | None, Field(description="Of the feature.")] = None
    head: int | None = None
    operation: Literal["add", "clamp", "ablate", "project_out"]
    amount: float | None = None
    mean_norm: float | None = None


def _amountless(pointer: str, operation: str) -> Violation:
    message = f"{operation} has no amount: leave `value` out"
    return Violation(f"{pointer}/value", ErrorCode.INVALID_REQUEST, message)
