"""What the tests of attribution patching share: jobs, and the same definitions on plain transformers in float64."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from services.contracts.attribution import AttributionResult
from services.contracts.attribution_patching import AttributionPatchingOutcome, NodeEffects
from services.contracts.tensor import InlineTensor
from tests.brute_force import Place, Reference
from tests.services.methods.conftest import Laboratory

CLEAN = "When John and Mary went to the shops, John gave the bag to"
CORRUPTED = "When John and Mary went to the shops, Mary gave the bag to"
PAIR = {"clean": CLEAN, "corrupted": CORRUPTED, "answer": " Mary", "foil": " John"}


def job(family: str, pairs: Sequence[dict[str, Any]] = (PAIR,), **method: Any) -> dict[str, Any]:
    model = family if "-" in family else f"tiny-{family.replace('_', '-')}"
    spec = {"type": "attribution_patching", **method}
    return {"kind": "attribution", "model": model, "method": spec, "pairs": list(pairs)}


def attribute(laboratory: Laboratory, body: dict[str, Any]) -> AttributionPatchingOutcome:
    result = laboratory.run(body)
    assert isinstance(result, AttributionResult)
    assert isinstance(result.attribution, AttributionPatchingOutcome)
    return result.attribution


def array(estimate: Any) -> Any:
    assert isinstance(estimate, InlineTensor)
    return estimate.array()


def effects(outcome: AttributionPatchingOutcome) -> dict[str, Any]:
    """One pair's effects by site."""
    return {nodes.site.value: array(nodes.effects) for nodes in outcome.nodes}


def nodes(outcome: AttributionPatchingOutcome, site: str) -> NodeEffects:
    (found,) = [nodes for nodes in outcome.nodes if nodes.site == site]
    return found


class PlainPair:
    """A pair on a plain model: target and source runs, the logit difference, and first-order effects."""

    def __init__(self, laboratory: Laboratory, outcome: AttributionPatchingOutcome, model: str) -> None:
        self.reference = Reference(laboratory.folder(model))
        tokens = outcome.pairs[0].tokens
        self.target, self.source = tokens.corrupted.ids, tokens.clean.ids
        if outcome.mode == "noising":
            self.target, self.source = self.source, self.target
        read = laboratory.catalogue.tokenizer(model).read
        self.mary, self.john = (read(name, bos=False).ids[0] for name in (" Mary", " John"))
        self.layers = range(len(self.reference.blocks))

    def metric(self, logits: Tensor) -> Tensor:
        return logits[-1, self.mary] - logits[-1, self.john]

    def differences(self, places: Sequence[Place]) -> dict[Place, Tensor]:
        """Source − target activations."""
        source, target = (self.reference.activations(run, places) for run in (self.source, self.target))
        return {place: source[place] - target[place] for place in places}

    def first_order(self, site: str, heads: int | None, stopped: Sequence[Place] = ()) -> Any:
        """(a_source − a_target) · ∂m/∂a as [layer(, head), position]."""
        places = [(site, layer) for layer in self.layers]
        gradients = self.reference.gradients(self.target, places, self.metric, stopped)
        return contracted(self.differences(places), gradients, heads)


def contracted(differences: Mapping[Place, Tensor], gradients: Mapping[Place, Tensor], heads: int | None) -> Any:
    """Dot products by layer, head and position; `heads` lie side by side in an activation."""
    products = torch.stack([differences[place] * gradients[place] for place in differences])
    if heads is None:
        return products.sum(-1).numpy()
    by_head = products.reshape(*products.shape[:2], heads, -1).sum(-1)
    return np.moveaxis(by_head.numpy(), 1, 2)
