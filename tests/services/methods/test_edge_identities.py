"""What holds for edges in every family: those out of a node add up to the node's own score."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from services.contracts.attribution import AttributionResult
from services.contracts.edge_attribution_patching import EdgeAttributionOutcome
from services.contracts.quadrature import nodes_of
from services.contracts.result import PairTokens
from services.contracts.site import SiteName
from services.engine.engine import Engine
from services.engine.objective import Weighted
from services.engine.readout import TokenLogits
from services.engine.row import Capture, Gradients, Intervention, Row, Site
from services.engine.ticket import JobTicket
from services.models.load import LoadedModel
from tests.families import FAMILIES, NATIVES
from tests.services.methods.conftest import Laboratory
from tests.services.methods.test_edge_attribution_patching import array, job, model_id

EVERY = (*FAMILIES, *NATIVES)
STEPS = 3
ANSWERS = (33, 60)
PAIR = {
    "clean": {"type": "tokens", "tokens": [17, 41, 5, 230, 99, 8, 310, 41]},
    "corrupted": {"type": "tokens", "tokens": [18, 77, 41, 231, 5, 12, 8, 300]},
    "answer": ANSWERS[0],
    "foil": ANSWERS[1],
}
"""Unlike at every position, so that no position's gradient is left out."""
EMBED = Capture(Site(SiteName.EMBED))

Activations = Mapping[Capture, Float[Tensor, "position ..."]]


@dataclass
class Nodes:
    """Scores of nodes by the engine's own gradients at what they put out, which no reader takes part in."""

    engine: Engine
    model: LoadedModel
    tokens: PairTokens

    def scores(self, variant: str) -> dict[str, float]:
        """(u_clean − u_corrupted) · ∂m/∂u by node; `a1` is all of a layer's heads together."""
        clean, corrupted = (self._run(Row(ids, captures=self._sites())) for ids in (self._clean, self._corrupted))
        gradients = self._gradients(variant, clean[EMBED], corrupted[EMBED])
        scores = {}
        for capture in self._sites():
            products = (clean[capture] - corrupted[capture]) * gradients[capture]
            layer = capture.site.layer
            match capture.site.name:
                case SiteName.EMBED:
                    scores["input"] = float(products.sum())
                case SiteName.MLP_OUT:
                    scores[f"m{layer}"] = float(products.sum())
                case SiteName.ATTN_OUT:
                    scores[f"a{layer}"] = float(products.sum())
                case _ if not self.model.facts.post_norms:
                    scores |= {f"a{layer}.h{head}": float(score) for head, score in enumerate(products.sum((0, 2)))}
        return scores

    @property
    def _clean(self) -> tuple[int, ...]:
        return self.tokens.clean.ids

    @property
    def _corrupted(self) -> tuple[int, ...]:
        return self.tokens.corrupted.ids

    def _sites(self) -> tuple[Capture, ...]:
        mlps = (SiteName.MLP_OUT,) if self.model.facts.d_mlp else ()
        names = (SiteName.ATTN_OUT, SiteName.Z, *mlps)
        layers = range(self.model.facts.layers)
        return (EMBED, *(Capture(Site(name, layer)) for layer in layers for name in names))

    def _run(self, row: Row) -> Activations:
        (outcome,) = self.engine.run(self.model, [row], job=JobTicket("nodes", "nobody"))
        return outcome.captures if row.gradients is None else outcome.gradients

    def _gradients(self, variant: str, clean: Tensor, corrupted: Tensor) -> Activations:
        path = [(1.0, 1.0)] if variant == "eap" else nodes_of("midpoint", STEPS)
        readout = TokenLogits(len(self._clean) - 1, ANSWERS)
        taken = Gradients(Weighted((1.0, -1.0)), self._sites())
        summed: dict[Capture, Tensor] = {}
        for alpha, weight in path:
            embeddings = Intervention(EMBED.site, None, "set", corrupted + alpha * (clean - corrupted))
            found = self._run(Row(self._clean, (embeddings,), readout=readout, gradients=taken))
            for capture, gradient in found.items():
                summed[capture] = summed.get(capture, torch.zeros(())) + weight * gradient
        return summed


def out_of(outcome: EdgeAttributionOutcome, prefix: str) -> float:
    """The sum of the edges out of the writers whose names begin so."""
    names = [name for name in outcome.writers if name == prefix or name.startswith(f"{prefix}.")]
    return float(np.nansum(array(outcome.scores)[[outcome.writers.index(name) for name in names]]))


@pytest.mark.parametrize("variant", ["eap", "eap_ig_inputs"])
@pytest.mark.parametrize("family", EVERY)
def test_the_edges_out_of_a_node_add_up_to_the_nodes_score(every_family: Laboratory, family: str, variant: str) -> None:
    body = job(family, method={"variant": variant, "steps": STEPS}, pairs=[PAIR])
    result: Any = every_family.run(body)
    assert isinstance(result, AttributionResult)
    outcome = result.attribution
    assert isinstance(outcome, EdgeAttributionOutcome)
    model = every_family.model(model_id(family))
    expected = Nodes(every_family.engine, model, outcome.pairs[0].tokens).scores(variant)
    largest = max(map(abs, expected.values()))
    facts = model.facts
    assert len(expected) == 1 + facts.layers * (1 + (not facts.post_norms) * facts.heads + (facts.d_mlp > 0))
    for name, score in expected.items():
        assert out_of(outcome, name) == pytest.approx(score, abs=2e-5 * largest, rel=1e-4), name
