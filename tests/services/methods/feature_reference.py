"""What the tests of an SAE's features as sites share: made-up SAEs, and the same changes in plain float64."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from services.catalogue.catalogue import Catalogue
from services.contracts.sae import SaeFacts
from services.methods.context import SaeInUse
from services.saes.sae import Relu, Sae, TopK
from tests.brute_force import Reference
from tests.services.methods.attribution_patching import PAIR
from tests.services.methods.conftest import Laboratory
from tests.services.methods.saes import in_use

FEATURES, D_MODEL = 64, 32
EXAMPLE = {"prompt": PAIR["clean"], "answer": PAIR["answer"], "foil": PAIR["foil"]}


def made(
    site: str = "resid_post", layer: int = 1, *, sparse: bool = True, width: int = D_MODEL, **changes: Any
) -> SaeInUse:
    """A random SAE; without `sparse`, all of its features fire on everything."""
    generator = torch.Generator().manual_seed(5)
    weights: dict[str, Any] = {
        "W_enc": torch.randn(width, FEATURES, generator=generator) / width**0.5,
        "b_enc": torch.randn(FEATURES, generator=generator) + (0 if sparse else 10_000),
        "W_dec": torch.randn(FEATURES, width, generator=generator) / width**0.5,
        "b_dec": torch.randn(width, generator=generator),
    }
    rest: dict[str, Any] = {
        "activation": TopK(8) if sparse else Relu(),
        "apply_b_dec_to_input": True,
        "hook_name": f"blocks.{layer}.hook_{site}",
    }
    sae = Sae(**{**weights, **rest, **changes})
    return in_use(sae, site=site, layer=layer)


def served(laboratory: Laboratory, facts: SaeFacts) -> Catalogue:
    return Catalogue(laboratory.catalogue.home, laboratory.catalogue.models, {"sae": facts})


class Plain:
    """The same change worked out in float64, with nothing of lensd."""

    def __init__(
        self, laboratory: Laboratory, used: SaeInUse, base: Sequence[int], source: Sequence[int] | None
    ) -> None:
        self.reference, self.sae = Reference(laboratory.folder("tiny-llama")), used.sae
        self.place = (used.facts.site.value, used.facts.layer)
        self.base = base
        self.x = self.at_site(self.base)
        self.f = self.features(self.x)
        if source is None:
            self.other, features = self.sae.b_dec.double().expand_as(self.x), torch.zeros_like(self.f)
        else:
            self.other = self.at_site(source)
            features = self.features(self.other)
        limit = self.sae.norm_threshold or torch.inf
        kept = self.x.norm(dim=1) <= limit
        if source is not None:
            kept &= self.other.norm(dim=1) <= limit
        self.changed = (features - self.f) * kept[:, None]
        self.whole = (self.other - self.x) * kept[:, None]
        self.left_out = tuple((~kept).nonzero().flatten().tolist())
        read = laboratory.catalogue.tokenizer("tiny-llama").read
        self.answer, self.foil = (read(PAIR[name], bos=False).ids[0] for name in ("answer", "foil"))

    def at_site(self, tokens: Any) -> Tensor:
        taken: Tensor = self.reference.activations(tokens, [self.place])[self.place]
        return taken

    def features(self, x: Tensor) -> Tensor:
        pre = (x - self.sae.b_dec.double()) @ self.sae.W_enc.double() + self.sae.b_enc.double()
        if self.sae.k is None:
            return pre.relu()
        least = pre.sort(dim=1, descending=True).values[:, self.sae.k - 1 :][:, :1]
        return torch.where(pre >= least, pre.relu(), 0.0)

    def metric(self, logits: Tensor) -> Tensor:
        difference: Tensor = logits[-1, self.answer] - logits[-1, self.foil]
        return difference

    def effect(self, added: Tensor) -> float:
        """m with `added` at the site, minus m."""
        patched = self.reference.logits(self.base, {self.place: lambda x: x + added})
        return float(self.metric(patched) - self.metric(self.reference.logits(self.base)))

    def of_feature(self, index: int) -> Tensor:
        added: Tensor = self.changed[:, index, None] * self.sae.W_dec[index].double()
        return added

    def error(self) -> Tensor:
        left: Tensor = self.whole - self.changed @ self.sae.W_dec.double()
        return left

    def gradient(self) -> Tensor:
        return self.reference.gradients(self.base, [self.place], self.metric)[self.place]
