"""What attribution patching takes, and what it answers."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from services.contracts.attribution_method import AttributionMethodBase, clean_gradient_violations
from services.contracts.base import Contract, Request
from services.contracts.errors import ErrorCode, Violation
from services.contracts.inputs import Inputs
from services.contracts.metric import Metric
from services.contracts.model import ModelFacts
from services.contracts.place import site_violations
from services.contracts.result import Baselines, PairTokens
from services.contracts.site import SiteName
from services.contracts.sweep import SweptPosition, position_violations
from services.contracts.tensor import Estimate

NodeSite = Literal["q", "k", "v", "z", "attn_out", "mlp_out", "resid_pre"]

QK_NODES = ("q", "k")
"""Nodes whose effect AtP* finds through the attention pattern."""


class ExactCheck(Request):
    """How many of the estimates are checked: the `top_k` largest, and `sampled` of the others, drawn by `seed`."""

    top_k: Annotated[int, Field(ge=1, le=1_000)] = 10
    sampled: Annotated[int, Field(ge=0, le=1_000)] = 10
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0


class AttributionPatching(AttributionMethodBase):
    """An estimate of activation patching for every node at once (`atp`: Nanda 2023; `atp_star`: Kramár et al. 2024).

    `denoising` estimates what clean activations do in the corrupted run, `noising` the reverse. `k` and `v` have the
    model's KV heads. Without `positions`, every position of pairs of equal length is a node of its own; in pairs of
    different lengths a node is changed at all positions at once.
    """

    type: Literal["attribution_patching"]
    variant: Literal["atp", "atp_star"] = "atp"
    mode: Literal["denoising", "noising"] = "denoising"
    nodes: Annotated[tuple[NodeSite, ...], Field(min_length=1, max_length=7)] = ("z", "mlp_out")
    positions: Annotated[
        tuple[SweptPosition, ...] | None,
        Field(min_length=1, max_length=4_096, description="Indices, or names that every pair defines."),
    ] = None
    check: ExactCheck = ExactCheck()

    def takes_pairs(self) -> bool:
        return True

    def qk_nodes(self) -> tuple[NodeSite, ...]:
        """Nodes whose effect is found through the recomputed pattern."""
        return tuple(node for node in self.nodes if self.variant == "atp_star" and node in QK_NODES)

    def gradient_nodes(self) -> tuple[NodeSite, ...]:
        """Nodes whose effect is found with the gradient at the node itself."""
        return tuple(node for node in self.nodes if node not in self.qk_nodes())

    def drops_gradients(self) -> bool:
        """Whether the gradient nodes are estimated by GradDrop, and so without a sign."""
        return self.variant == "atp_star" and bool(self.gradient_nodes())

    def metric_violations(self, metric: Metric) -> Iterator[Violation]:
        """In noising the gradient is taken at the clean run."""
        if self.mode == "noising":
            yield from clean_gradient_violations(metric, "use denoising, or another metric")

    def violations(self, facts: ModelFacts) -> Iterator[Violation]:
        """Nodes that this model lacks, and what AtP* needs of it."""
        for index, node in enumerate(self.nodes):
            yield from site_violations(node, facts, f"/method/nodes/{index}", write=True)
            if node in self.nodes[:index]:
                message = f"{node} is named twice"
                yield Violation(f"/method/nodes/{index}", ErrorCode.INVALID_REQUEST, message)
        if self.qk_nodes() and not _writable(SiteName.PATTERN, facts):
            message = (
                f"AtP* finds the effects of q and k through the attention pattern, which {facts.id} does not let be "
                "changed: take the variant atp, or leave q and k out"
            )
            yield Violation("/method/variant", ErrorCode.UNKNOWN_SITE, message)
        if self.drops_gradients() and facts.layers < 2:
            message = f"AtP* drops one layer's gradient after another, and {facts.id} has one: take the variant atp"
            yield Violation("/method/variant", ErrorCode.UNKNOWN_LAYER, message)

    def input_violations(self, inputs: Inputs) -> Iterator[Violation]:
        yield from position_violations(self.positions, inputs.pairs, "/method/positions", every=False)


def _writable(site: SiteName, facts: ModelFacts) -> bool:
    return any(known.name is site and known.writable for known in facts.sites)


class NodeEffects(Contract):
    """Estimated effects of one site's nodes: m(patched) − m(unpatched) in the metric's units.

    Where `signed` is false (GradDrop) they are magnitudes. `layers`, `heads` and `positions` label the axes.
    """

    site: SiteName
    layers: tuple[int, ...]
    heads: tuple[int, ...] | None
    positions: tuple[int | str, ...] | None
    signed: bool
    effects: Estimate


class AttributionPair(Contract):
    tokens: PairTokens
    differing_positions: tuple[int, ...]
    baselines: Baselines
    nodes: Annotated[tuple[NodeEffects, ...] | None, Field(description="The pair's own estimates.")] = None


class CheckedNode(Contract):
    """One node patched exactly; `estimated` and `exact` are means over pairs, of magnitudes where the estimate is one.
    `position` is null where all positions are patched at once.
    """

    site: SiteName
    layer: int
    head: int | None
    position: int | str | None
    chosen: Literal["top", "sampled"]
    estimated: float
    exact: float


class AttributionCheck(Contract):
    """The estimates against activation patching of some nodes, among those behind the first token that differs."""

    rank_correlation: Annotated[
        float | None, Field(description="Spearman's, of estimated and exact effects; null where it is not defined.")
    ]
    largest_error: Annotated[float, Field(description="max |estimated − exact|, in the metric's units.")]
    false_negatives: Annotated[
        int,
        Field(
            description="Sampled nodes whose exact effect is larger in magnitude than the smallest among the top, and "
            "than a thousandth of the largest that was found."
        ),
    ]
    cells: tuple[CheckedNode, ...]


class AttributionPatchingOutcome(Contract):
    type: Literal["attribution_patching"] = "attribution_patching"
    variant: Literal["atp", "atp_star"]
    mode: Literal["denoising", "noising"]
    nodes: tuple[NodeEffects, ...]
    pairs: tuple[AttributionPair, ...]
    check: AttributionCheck
