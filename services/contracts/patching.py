"""`patching`: put activations of one run into another and see what the metric does."""

from typing import Annotated, Literal

from pydantic import Field

from services.contracts.base import Contract, Head, Layer, Position, Request
from services.contracts.metric import LogitDiff, Metric
from services.contracts.prompt import Pair, PositionName
from services.contracts.result import PromptTokens, Result
from services.contracts.site import SiteName
from services.contracts.spec import Spec
from services.contracts.tensor import Estimate

SweptPosition = Position | PositionName


class ActivationPatching(Request):
    """Sweep one site over layers × positions, or (for `z`) over layers × heads, one cell per patched run.

    `denoising` puts clean activations into the corrupted run, `noising` the reverse. Omitted lists mean all.
    """

    type: Literal["activation_patching"]
    site: Literal["resid_pre", "attn_out", "mlp_out", "z"]
    mode: Literal["denoising", "noising"] = "denoising"
    layers: Annotated[tuple[Layer, ...] | None, Field(min_length=1, max_length=1_000)] = None
    heads: Annotated[tuple[Head, ...] | None, Field(min_length=1, max_length=1_000)] = None
    positions: Annotated[
        tuple[SweptPosition, ...] | None,
        Field(min_length=1, max_length=4_096, description="Indices, or names that every pair defines."),
    ] = None


class PatchingSpec(Spec):
    kind: Literal["patching"]
    method: ActivationPatching
    pairs: Annotated[tuple[Pair, ...], Field(min_length=1, max_length=1_000)]
    metric: Metric = LogitDiff()
    per_pair: Annotated[bool, Field(description="Also report every pair's own effects.")] = False


class PairTokens(Contract):
    clean: PromptTokens
    corrupted: PromptTokens


class Baselines(Contract):
    """The metric on the two unpatched runs."""

    clean: float
    corrupted: float


class PatchedPair(Contract):
    tokens: PairTokens
    differing_positions: tuple[int, ...]
    baselines: Baselines
    effects: Estimate | None = None


class PatchingResult(Result):
    """`effects` = m(patched) − m(unpatched) in the metric's units; `normalized` = effect / (m(other) − m(unpatched)).

    `layers`, `heads` and `positions` label the axes named in `dims`.
    """

    kind: Literal["patching"] = "patching"
    site: SiteName
    mode: Literal["denoising", "noising"]
    layers: tuple[int, ...]
    heads: tuple[int, ...] | None = None
    positions: tuple[int | str, ...] | None = None
    pairs: tuple[PatchedPair, ...]
    effects: Estimate
    normalized: Estimate
