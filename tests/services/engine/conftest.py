"""Tiny models of all families, and plain forward passes to hold the engine against."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from services.catalogue.catalogue import model_folder
from services.contracts.site import SiteName
from services.engine.engine import Engine, EngineLimits
from services.engine.ticket import JobTicket
from services.models.load import LoadedModel, load_model
from tests.prepared import prepare_family

LoadTiny = Callable[[str, torch.dtype], LoadedModel]

HOOKS = {
    SiteName.EMBED: "embed.hook_out",
    SiteName.MLP_POST: "blocks.{layer}.mlp.hook_post",
    **{site: f"blocks.{{layer}}.attn.hook_{site}" for site in (SiteName.Q, SiteName.K, SiteName.V, SiteName.Z)},
    **{site: f"blocks.{{layer}}.attn.hook_{site}" for site in (SiteName.ATTN_SCORES, SiteName.PATTERN)},
    **{site: f"blocks.{{layer}}.hook_{site}" for site in (SiteName.RESID_PRE, SiteName.RESID_MID, SiteName.RESID_POST)},
    **{site: f"blocks.{{layer}}.hook_{site}" for site in (SiteName.ATTN_OUT, SiteName.MLP_OUT)},
}
"""TransformerLens' own names, written down a second time."""


@pytest.fixture(scope="session")
def load_tiny(tmp_path_factory: pytest.TempPathFactory) -> LoadTiny:
    """Loads a tiny model of a family; each is prepared once."""
    home = tmp_path_factory.mktemp("home")

    @cache
    def prepare(family: str) -> Any:
        return prepare_family(family, tmp_path_factory.mktemp("sources"), home)

    @cache
    def load(family: str, dtype: torch.dtype) -> LoadedModel:
        facts = prepare(family)
        folder: Path = model_folder(home, facts.id)
        return load_model(folder, facts, device=torch.device("cpu"), dtype=dtype)

    return load


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    with Engine(EngineLimits(threads=1)) as running:
        yield running


@pytest.fixture
def job() -> JobTicket:
    return JobTicket("job", "owner")


class Plain:
    """One plain forward pass per question, by TransformerLens' own hooks."""

    def __init__(self, model: LoadedModel) -> None:
        self._bridge = model.bridge

    @torch.no_grad()
    def logits(
        self, tokens: Sequence[int], *changes: tuple[SiteName, int | None, Callable[[Tensor], Tensor]]
    ) -> Float[Tensor, "position vocabulary"]:
        """Logits of a run in which every change is made, in place, to the activation [position, ...] of its site."""

        def hook(site: SiteName, change: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
            def apply(activation: Tensor, hook: Any) -> Tensor:
                view = _by_position(site, activation[0])
                view.copy_(change(view.clone()))
                return activation

            return apply

        hooks = [(HOOKS[site].format(layer=layer), hook(site, change)) for site, layer, change in changes]
        found: Tensor = self._bridge.run_with_hooks(torch.tensor([list(tokens)]), fwd_hooks=hooks)
        return found[0]

    def activation(self, tokens: Sequence[int], site: SiteName, layer: int | None) -> Float[Tensor, "position ..."]:
        """The activation of an unpatched run; computed once."""
        return self._activation(tuple(tokens), site, layer)

    @cache  # noqa: B019 - lives as long as one test
    def _activation(self, tokens: tuple[int, ...], site: SiteName, layer: int | None) -> Float[Tensor, "position ..."]:
        taken: list[Tensor] = []

        def take(activation: Tensor) -> Tensor:
            taken.append(activation.clone())
            return activation

        self.logits(tokens, (site, layer, take))
        return taken[0]


def _by_position(site: SiteName, activation: Tensor) -> Tensor:
    return activation.transpose(0, 1) if site in (SiteName.ATTN_SCORES, SiteName.PATTERN) else activation
