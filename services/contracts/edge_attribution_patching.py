"""What edge attribution patching takes, and what it answers."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from services.contracts.attribution_method import AttributionMethodBase, clean_gradient_violations
from services.contracts.base import Contract
from services.contracts.errors import ErrorCode, Violation
from services.contracts.metric import Metric
from services.contracts.model import ModelFacts
from services.contracts.place import site_violations
from services.contracts.quadrature import Quadrature, Steps
from services.contracts.result import Baselines, PairTokens
from services.contracts.site import SiteName
from services.contracts.tensor import Estimate, ScalarStatistic

EdgeVariant = Literal["eap", "eap_ig_inputs", "eap_ig_activations"]


class EdgeAttributionPatching(AttributionMethodBase):
    """What each edge from a writer to a reader passes on of the difference between the clean and the corrupted run:
    (u_clean − u_corrupted) · the mean gradient at the reader's input, summed over positions.

    `eap` takes the gradient at the clean run (Syed et al. 2023) and misleads where the metric saturates.
    `eap_ig_inputs` averages it over `steps` runs whose embeddings go from the corrupted prompt's to the clean one's
    (Hanna et al. 2024). `eap_ig_activations` averages it anew for each writer's edges, over clean runs in which only
    the output of its layer's attention, or of its MLP, goes from the corrupted run's to the clean one's (Marks et al.
    2024): 1 + 2 · layers times as many runs. `eap` has no use for `steps` and `quadrature`.
    """

    type: Literal["edge_attribution_patching"]
    variant: EdgeVariant = "eap_ig_inputs"
    steps: Steps = 5
    quadrature: Quadrature = "midpoint"
    top_k: Annotated[int, Field(ge=1, le=10_000, description="Edges to name, largest |score| first.")] = 100
    scores: Annotated[bool, Field(description="Also report every edge's score, as one tensor.")] = False

    def takes_pairs(self) -> bool:
        return True

    def metric_violations(self, metric: Metric) -> Iterator[Violation]:
        if self.variant == "eap":
            instead = "take the variant eap_ig_inputs, which follows it from the corrupted run on, or another metric"
            yield from clean_gradient_violations(metric, instead)

    def violations(self, facts: ModelFacts) -> Iterator[Violation]:
        """A model whose residual stream cannot be taken apart, and a trapezoid without two ends."""
        for site in edge_sites(facts):
            yield from site_violations(site, facts, "/method/type", write=True)
        if self.variant != "eap" and self.quadrature == "trapezoid" and self.steps < 2:
            message = "a trapezoid has two ends: take at least 2 steps, or another quadrature"
            yield Violation("/method/steps", ErrorCode.INVALID_REQUEST, message)


def edge_sites(facts: ModelFacts) -> tuple[SiteName, ...]:
    """The sites at which edges are measured: what is written, and where gradients are taken."""
    always = (SiteName.RESID_PRE, SiteName.RESID_POST, SiteName.ATTN_OUT)
    heads = (SiteName.Q, SiteName.K, SiteName.V, SiteName.Z)
    if not facts.d_mlp:
        return (*always, *heads)
    between = () if facts.parallel_blocks else (SiteName.RESID_MID,)
    return (*always, *heads, *between, SiteName.MLP_OUT)


class ScoredEdge(Contract):
    edge: Annotated[str, Field(examples=["a9.h6->a10.h0<q>"])]
    score: Annotated[
        ScalarStatistic, Field(description="In the metric's units; positive: what the clean run passes on raises it.")
    ]


class EdgeCounts(Contract):
    """All edges of the model. `edges` counts k and v once per KV head, as the scores have them; `per_query_head` once
    per query head, as the Mechanistic Interpretability Benchmark does."""

    edges: int
    per_query_head: int


class EdgePair(Contract):
    """`completeness_gap` = m(clean) − m(corrupted) − Σ of the input's edges: what too few steps leave unexplained.

    Given for `eap_ig_inputs` alone: with the others no such sum is due.
    """

    tokens: PairTokens
    differing_positions: tuple[int, ...]
    baselines: Baselines
    completeness_gap: float | None = None
    scores: Estimate | None = None


class EdgeAttributionOutcome(Contract):
    """`writers` and `readers` label the axes of `scores`, where null means that there is no such edge. For `eap`, which
    takes one gradient, `steps` and `quadrature` are null."""

    type: Literal["edge_attribution_patching"] = "edge_attribution_patching"
    variant: EdgeVariant
    steps: int | None
    quadrature: Quadrature | None
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    scores: Estimate | None = None
    edges: tuple[ScoredEdge, ...]
    edge_counts: EdgeCounts
    pairs: tuple[EdgePair, ...]
