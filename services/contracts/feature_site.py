"""What all methods share that take an SAE's features for parts of the model: x = Σ f_i d_i + b_dec + ε at its site."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import Field

from services.contracts.base import CatalogueId, Contract, Position, Request
from services.contracts.errors import ErrorCode, Violation
from services.contracts.features import FeatureIndex
from services.contracts.inputs import Inputs
from services.contracts.sae import SaeFacts
from services.contracts.sweep import SweptPosition, index_of, position_violations

TopFeatures = Annotated[int, Field(ge=1, le=1_000)]

PromotedLogits = Annotated[
    int, Field(ge=0, le=50, description="How many promoted and suppressed tokens to list per feature; 0 for none.")
]

_TOP_FEATURES = 10


class FeatureChoice(Request):
    """Which features of which SAE: those that `features` names, and `top_k` others, by the first-order estimate."""

    sae: CatalogueId
    features: Annotated[tuple[FeatureIndex, ...], Field(max_length=1_000)] = ()
    top_k: Annotated[
        int | None,
        Field(
            ge=0,
            le=1_000,
            description="So many more features: those of largest |estimate|. Null: 10, or none beside `features`.",
        ),
    ] = None
    by_position: Annotated[
        bool, Field(description="Change features at one position a run, instead of at all positions together.")
    ] = False
    promoted_logits: PromotedLogits = 5

    def top_features(self) -> int:
        """How many are chosen by their estimate."""
        return self.top_k if self.top_k is not None else 0 if self.features else _TOP_FEATURES

    def choice_violations(self, pointer: str) -> Iterator[Violation]:
        """No feature at all, or one twice."""
        if not self.features and not self.top_features():
            message = "there is no feature to change: name `features`, or take a `top_k`"
            yield Violation(f"{pointer}/features", ErrorCode.INVALID_REQUEST, message)
        for place, feature in enumerate(self.features):
            if feature in self.features[:place]:
                message = f"feature {feature} is named twice: name it once"
                yield Violation(f"{pointer}/features/{place}", ErrorCode.INVALID_REQUEST, message)

    def sae_violations(self, sae: SaeFacts) -> Iterator[Violation]:
        """An SAE whose features cannot be written, and features that it does not have."""
        yield from sae_violations(sae, "/method/sae")
        for place, feature in enumerate(self.features):
            if feature >= sae.features:
                message = f"feature {feature} does not exist: {sae.id} has features 0..{sae.features - 1}"
                yield Violation(f"/method/features/{place}", ErrorCode.UNKNOWN_FEATURE, message)


class ChosenFeature(Contract):
    """A feature that was changed, and why: `given` by the job, or one of the `top` by its estimate."""

    index: int
    chosen: Literal["given", "top"]


class EstimateCheck(Contract):
    """First-order estimates beside the exact effects of the same changes, over all cells of the features' tensors."""

    rank_correlation: Annotated[float | None, Field(description="Spearman's; null where it is not defined.")]
    largest_error: Annotated[float, Field(description="max |estimated − exact|, in the metric's units.")]


def sae_violations(sae: SaeFacts, pointer: str) -> Iterator[Violation]:
    """An SAE whose features do not add up to the activations that it reads: no sum of features gives x."""
    message = ""
    if sae.output is not None:
        message = (
            f"{sae.id} is a transcoder: it reads {sae.site} of layer {sae.layer} and writes {sae.output.site} of layer "
            f"{sae.output.layer}, so its features are no parts of what it reads; ask a `features` job for them, or "
            "take an SAE"
        )
    elif sae.scales_tokens:
        message = (
            f"{sae.id} scales each token by its own size ({sae.normalize_activations}): its directions are not in the "
            "activations' units, so its features can be read but not written"
        )
    if message:
        yield Violation(pointer, ErrorCode.SAE_MISMATCH, message)


def pair_position_violations(
    positions: Sequence[SweptPosition] | None, inputs: Inputs, pointer: str, *, by_position: bool
) -> Iterator[Violation]:
    """Where features of pairs change: positions that all have, each once; every one only of pairs of one length."""
    found = list(position_violations(positions, inputs.pairs, pointer, every=by_position))
    yield from found
    for pair in inputs.pairs if positions and not found else ():
        indices = [index_of(position, pair) for position in positions or ()]
        same = list(_same_position_violations(indices, [len(pair.clean.ids)], pointer))
        if same:
            yield from same
            return


def example_position_violations(
    positions: Sequence[SweptPosition] | None, inputs: Inputs, pointer: str, *, by_position: bool
) -> Iterator[Violation]:
    """The same for examples."""
    given = positions or ()
    found = list(_unknown_position_violations(given, inputs, pointer))
    yield from found
    lengths = [len(example.prompt.ids) for example in inputs.examples]
    if not found:
        yield from _same_position_violations([at for at in given if isinstance(at, int)], lengths, pointer)
    if by_position and positions is None and len(set(lengths)) > 1:
        message = "the examples have different lengths, so their positions do not correspond: list `positions`"
        yield Violation(pointer, ErrorCode.UNEQUAL_LENGTHS, message)


def _unknown_position_violations(
    positions: Sequence[SweptPosition], inputs: Inputs, pointer: str
) -> Iterator[Violation]:
    shortest = min(len(example.prompt.ids) for example in inputs.examples)
    for index, position in enumerate(positions):
        message = ""
        if isinstance(position, str):
            message = f"no position of an example is called {position!r}: only pairs name positions, give an index"
        elif not -shortest <= position < shortest:
            message = f"position {position} does not exist in a prompt of {shortest} tokens: 0..{shortest - 1}"
        if message:
            yield Violation(f"{pointer}/{index}", ErrorCode.UNKNOWN_POSITION, message)


def _same_position_violations(
    positions: Sequence[Position], lengths: Sequence[int], pointer: str
) -> Iterator[Violation]:
    """Positions that are one and the same in a prompt of one of these lengths."""
    for length in sorted(set(lengths)):
        if len({position % length for position in positions}) < len(positions):
            message = f"two of these positions are the same one in a prompt of {length} tokens"
            yield Violation(pointer, ErrorCode.UNKNOWN_POSITION, message)
            return
