"""`patching`: put activations of one run into another and see what the metric does."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import Field

from services.contracts.base import Contract, Head, Layer, Position, Request
from services.contracts.errors import ErrorCode, Violation
from services.contracts.inputs import TokenizedPair
from services.contracts.metric import LogitDiff, Metric
from services.contracts.model import ModelFacts
from services.contracts.prompt import Pair, PositionName
from services.contracts.result import PromptTokens, Result
from services.contracts.site import HEAD_SITES, KV_SITES, SiteName
from services.contracts.spec import Spec
from services.contracts.tensor import Estimate

SweptPosition = Position | PositionName
SweptSite = Literal[
    "embed",
    "resid_pre",
    "resid_mid",
    "resid_post",
    "attn_out",
    "mlp_out",
    "mlp_post",
    "q",
    "k",
    "v",
    "z",
    "attn_scores",
    "pattern",
]


class ActivationPatching(Request):
    """Sweep one site, one cell per patched run.

    Sites of the residual stream and of whole layers go over layers × positions (`embed` over positions alone). Sites
    with heads go over layers × heads, each head patched at all positions at once; with `positions`, over layers × heads
    × those positions. `k` and `v` have the model's KV heads. `denoising` puts clean activations into the corrupted run,
    `noising` the reverse. Omitted lists mean all.
    """

    type: Literal["activation_patching"]
    site: SweptSite
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

    def violations(self, facts: ModelFacts) -> Iterator[Violation]:
        """What this model cannot do: layers and heads that do not exist, a site it lacks."""
        method = self.method
        for index, layer in enumerate(method.layers or ()):
            if layer >= facts.layers:
                message = f"layer {layer} does not exist: {facts.id} has layers 0..{facts.layers - 1}"
                yield Violation(f"/method/layers/{index}", ErrorCode.UNKNOWN_LAYER, message)
        if method.layers is not None and method.site == "embed":
            message = "embed comes before the layers: leave `layers` out"
            yield Violation("/method/layers", ErrorCode.UNKNOWN_LAYER, message)
        heads = heads_of(method.site, facts)
        if method.heads is not None and not heads:
            message = f"{method.site} has no heads: sites with heads are {', '.join(HEAD_SITES)}"
            yield Violation("/method/heads", ErrorCode.UNKNOWN_HEAD, message)
        for index, head in enumerate(method.heads or ()):
            if 0 < heads <= head:
                message = f"head {head} does not exist: {method.site} of {facts.id} has heads 0..{heads - 1}"
                yield Violation(f"/method/heads/{index}", ErrorCode.UNKNOWN_HEAD, message)
        site = next((site for site in facts.sites if site.name == method.site), None)
        if site is not None and not site.writable:
            yield Violation(
                "/method/site", ErrorCode.UNKNOWN_SITE, f"{facts.id} cannot patch {site.name}: {site.reason}"
            )

    def position_violations(self, pairs: Sequence[TokenizedPair]) -> Iterator[Violation]:
        """Positions to sweep that some pair lacks, and sweeps over every position of pairs of different lengths."""
        shortest = min(len(pair.clean.ids) for pair in pairs)
        longest = max(len(pair.clean.ids) for pair in pairs)
        if self.method.positions is None and self.method.site not in HEAD_SITES and shortest != longest:
            message = (
                f"the pairs have between {shortest} and {longest} tokens, so their positions do not correspond: "
                "name positions in every pair and list those names here, or send one job per length"
            )
            yield Violation("/method/positions", ErrorCode.UNEQUAL_LENGTHS, message)
        for index, position in enumerate(self.method.positions or ()):
            pointer = f"/method/positions/{index}"
            if isinstance(position, str):
                lacking = [number for number, pair in enumerate(pairs) if position not in pair.positions]
                if lacking:
                    message = f"no position is called {position!r} in pair {lacking[0]}: name it in its `positions`"
                    yield Violation(pointer, ErrorCode.UNKNOWN_POSITION, message)
            elif not -shortest <= position < shortest:
                message = f"position {position} does not exist in a prompt of {shortest} tokens: 0..{shortest - 1}"
                yield Violation(pointer, ErrorCode.UNKNOWN_POSITION, message)


def heads_of(site: str, facts: ModelFacts) -> int:
    """How many heads a site has in this model; 0 for sites without."""
    if site not in HEAD_SITES:
        return 0
    return facts.kv_heads if site in KV_SITES else facts.heads


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
    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    positions: tuple[int | str, ...] | None = None
    pairs: tuple[PatchedPair, ...]
    effects: Estimate
    normalized: Estimate
