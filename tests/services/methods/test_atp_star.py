"""AtP* against the paper's formulas written out on plain transformers in float64, and against activation patching."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from services.catalogue.catalogue import open_catalogue
from services.contracts.attribution_patching import AttributionPatchingOutcome
from services.contracts.errors import ErrorCode, InvalidSpec
from services.engine.engine import Engine
from tests.brute_force import Change
from tests.families import HEADS
from tests.prepared import prepare_family
from tests.services.methods.attribution_patching import PAIR, PlainPair, attribute, effects, job, nodes
from tests.services.methods.conftest import FAMILIES, Laboratory

KV_HEADS = 2
DROPPED = {"z": HEADS, "attn_out": None, "mlp_out": None, "resid_pre": None}


@pytest.mark.parametrize("family", FAMILIES)
def test_other_nodes_equal_grad_drop_in_float64(laboratory: Laboratory, family: str) -> None:
    body = job(family, variant="atp_star", nodes=list(DROPPED))
    outcome = attribute(laboratory, body)
    plain = PlainPair(laboratory, outcome, body["model"])
    layers = len(plain.layers)
    for site, heads in DROPPED.items():
        terms = [plain.first_order(site, heads, [("attn_out", at), ("mlp_out", at)]) for at in plain.layers]
        count = layers if site == "resid_pre" else layers - 1
        expected = np.abs(terms).sum(0) / count
        np.testing.assert_allclose(effects(outcome)[site], expected, atol=1e-4 * expected.max(), err_msg=site)
        assert not nodes(outcome, site).signed


class Patterns:
    """Attention patterns of a plain model, their gradients, and patterns under patched queries or keys."""

    def __init__(self, plain: PlainPair) -> None:
        self.plain = plain
        self.model = plain.reference.model

    def of(self, run: Sequence[int], changes: dict[Any, Change] | None = None) -> list[Tensor]:
        """By layer: [head, query, key]."""
        with torch.no_grad(), self.plain.reference._changed(changes or {}):
            attentions = self.model(torch.tensor([list(run)]), output_attentions=True).attentions
        return [pattern[0] for pattern in attentions]

    def gradients(self) -> list[Tensor]:
        run = self.model(torch.tensor([list(self.plain.target)]), output_attentions=True)
        return [each[0] for each in torch.autograd.grad(self.plain.metric(run.logits[0]), run.attentions)]

    def effects(self, site: str, layer: int, positions: slice) -> Tensor:
        """Σ over keys of Δpattern · ∂m/∂pattern, by head and query, with q or k at `positions` from the source run."""
        donor = self._activation(site, layer)

        def change(activation: Tensor) -> Tensor:
            changed = activation.clone()
            changed[positions] = donor[positions]
            return changed

        patched = self.of(self.plain.target, {(site, layer): change})[layer]
        unpatched, gradients = self._target()
        found: Tensor = ((patched - unpatched[layer]) * gradients[layer]).sum(-1)
        return found

    @cache  # noqa: B019 - lives as long as one test
    def _target(self) -> tuple[list[Tensor], list[Tensor]]:
        return self.of(self.plain.target), self.gradients()

    @cache  # noqa: B019 - lives as long as one test
    def _activation(self, site: str, layer: int) -> Tensor:
        return self.plain.reference.activations(self.plain.source, [(site, layer)])[site, layer]


def pattern_effects(plain: PlainPair) -> tuple[Any, Any]:
    """Equations 7 to 10: queries [layer, head, position] and keys [layer, KV head, position]."""
    patterns = Patterns(plain)
    length = len(plain.target)
    queries = torch.stack([patterns.effects("q", layer, slice(None)) for layer in plain.layers])
    keys = torch.stack(
        [
            torch.stack(
                [patterns.effects("k", layer, slice(at, at + 1)).sum(-1) for at in range(length)],
                dim=-1,
            )
            for layer in plain.layers
        ]
    )
    return queries.numpy(), keys.reshape(len(plain.layers), KV_HEADS, -1, length).sum(2).numpy()


def test_queries_and_keys_equal_the_recomputed_pattern_in_float64(laboratory: Laboratory) -> None:
    outcome = attribute(laboratory, job("llama", variant="atp_star", nodes=["q", "k"]))
    queries, keys = pattern_effects(PlainPair(laboratory, outcome, "tiny-llama"))
    np.testing.assert_allclose(effects(outcome)["q"], queries, atol=1e-4 * np.abs(queries).max())
    np.testing.assert_allclose(effects(outcome)["k"], keys, atol=1e-4 * np.abs(keys).max())
    assert nodes(outcome, "q").signed


def test_all_kinds_of_nodes_come_in_the_order_asked_for(laboratory: Laboratory) -> None:
    sites = ["resid_pre", "k", "z", "q"]
    together = attribute(laboratory, job("llama", variant="atp_star", nodes=sites))
    assert [found.site for found in together.nodes] == sites
    assert [found.signed for found in together.nodes] == [False, True, False, True]
    for site in sites:
        alone = attribute(laboratory, job("llama", variant="atp_star", nodes=[site]))
        np.testing.assert_allclose(effects(together)[site], effects(alone)[site], atol=1e-5)


def test_named_positions_are_the_same_nodes(laboratory: Laboratory) -> None:
    everywhere = attribute(laboratory, job("llama", variant="atp_star", nodes=["q", "k", "z"]))
    pair = PAIR | {"positions": {"END": -1}}
    named = attribute(
        laboratory, job("llama", [pair], variant="atp_star", nodes=["q", "k", "z"], positions=["END", -3])
    )
    for site in ("q", "k", "z"):
        np.testing.assert_allclose(effects(named)[site], effects(everywhere)[site][..., [-1, -3]], atol=1e-5)


def test_in_pairs_of_different_lengths_all_positions_are_patched_at_once(laboratory: Laboratory) -> None:
    longer = PAIR | {name: f"Then, {PAIR[name]}" for name in ("clean", "corrupted")}
    body = job("llama", [PAIR, longer], variant="atp_star", nodes=["q", "k", "z"])
    outcome = attribute(laboratory, body)
    alone = attribute(laboratory, job("llama", variant="atp_star", nodes=["q", "k"]))
    plain = PlainPair(laboratory, alone, "tiny-llama")
    patterns = Patterns(plain)
    keys = torch.stack([patterns.effects("k", layer, slice(None)).sum(-1) for layer in plain.layers])
    first = keys.reshape(len(plain.layers), KV_HEADS, -1).sum(-1).numpy()
    second = PlainPair(laboratory, _second(outcome), "tiny-llama")
    keys = torch.stack([Patterns(second).effects("k", layer, slice(None)).sum(-1) for layer in second.layers])
    expected = (first + keys.reshape(len(second.layers), KV_HEADS, -1).sum(-1).numpy()) / 2
    found: Any = nodes(outcome, "k").effects
    np.testing.assert_allclose(found.mean.array(), expected, atol=1e-4 * np.abs(expected).max())


def _second(outcome: AttributionPatchingOutcome) -> AttributionPatchingOutcome:
    return outcome.model_copy(update={"pairs": outcome.pairs[1:]})


def test_where_attention_saturates_the_pattern_tells_what_the_gradient_does_not(smollm2: Laboratory) -> None:
    """All 270 queries of SmolLM2's last token: exact effects against both estimates."""
    body: dict[str, Any] = {"nodes": ["q"], "positions": [-1], "check": {"top_k": 1_000}}
    plain, fixed = (
        attribute(smollm2, job("smollm2-135m", variant=variant, **body)).check for variant in ("atp", "atp_star")
    )
    assert len(plain.cells) == len(fixed.cells) == 270
    assert fixed.largest_error < 0.5 * plain.largest_error
    assert _mean_error(fixed) < 0.5 * _mean_error(plain)


def _mean_error(check: Any) -> float:
    return float(np.mean([abs(cell.estimated - cell.exact) for cell in check.cells]))


@pytest.mark.parametrize("family", ["opt", "gptj"])
def test_a_pattern_that_cannot_be_changed_is_refused_for_queries_and_keys(
    engine: Engine, family: str, tmp_path: Any
) -> None:
    prepare_family(family, tmp_path / "sources", tmp_path / "home")
    laboratory = Laboratory(engine, open_catalogue(tmp_path / "home"))
    with pytest.raises(InvalidSpec) as refused:
        laboratory.run(job(family, variant="atp_star", nodes=["z", "q"]))
    (violation,) = refused.value.violations
    assert (violation.pointer, violation.code) == ("/method/variant", ErrorCode.UNKNOWN_SITE)
    assert "take the variant atp, or leave q and k out" in violation.message
    outcome = attribute(laboratory, job(family, variant="atp_star", nodes=["z"]))
    assert np.abs(effects(outcome)["z"]).max() > 0
