"""Methods run as a worker runs them: a real engine on a real model, inputs resolved by the catalogue."""

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from services.catalogue.catalogue import Catalogue, model_folder, open_catalogue
from services.catalogue.resolve import Limits, resolve
from services.contracts.generation import NewTokens
from services.contracts.job import JobResult, JobSpec
from services.engine.engine import Engine, EngineLimits
from services.engine.ticket import JobTicket
from services.methods.context import MethodContext, SaeInUse
from services.methods.registry import run_method
from services.models.load import LoadedModel, load_model
from tests import families
from tests.hand_built import prepare_hand_built
from tests.prepared import prepare_family

FAMILIES = ("gpt2", "llama", "gpt_neox", "gemma2")
SPEC: TypeAdapter[JobSpec] = TypeAdapter(JobSpec)

Run = Callable[..., Any]


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    with Engine(EngineLimits(threads=1)) as running:
        yield running


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """A catalogue of a tiny model of each of these families, and of the native ones."""
    return prepared((*FAMILIES, *families.NATIVES), tmp_path_factory)


def prepared(names: Sequence[str], tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    home = tmp_path_factory.mktemp("home")
    for family in names:
        prepare_family(family, tmp_path_factory.mktemp("sources"), home)
    return open_catalogue(home)


class Laboratory:
    """Runs specifications on the models of a catalogue, each loaded once."""

    _owners = count()

    def __init__(
        self, engine: Engine, catalogue: Catalogue, on_tokens: Callable[[NewTokens], None] = lambda _: None
    ) -> None:
        self.engine = engine
        self.catalogue = catalogue
        self._on_tokens = on_tokens
        self._models: dict[str, LoadedModel] = {}

    def model(self, model_id: str) -> LoadedModel:
        if model_id not in self._models:
            facts = self.catalogue.model(model_id)
            self._models[model_id] = load_model(
                self.folder(model_id), facts, device=torch.device("cpu"), dtype=torch.float32
            )
        return self._models[model_id]

    def folder(self, model_id: str) -> Path:
        return model_folder(self.catalogue.home, model_id)

    def run(self, body: dict[str, Any], sae: SaeInUse | None = None) -> JobResult:
        """Run one job of an owner of its own: nothing that an earlier one computed is known."""
        spec = SPEC.validate_json(json.dumps(body))
        return run_method(spec, self.context(spec, sae))

    def context(self, spec: JobSpec, sae: SaeInUse | None = None) -> MethodContext:
        """What such a job is run with."""
        return MethodContext(
            model=self.model(spec.model),
            engine=self.engine,
            ticket=JobTicket("job", owner=f"owner {next(self._owners)}"),
            inputs=resolve(spec, self.catalogue, Limits()).inputs,
            tokenizer=self.catalogue.tokenizer(spec.model),
            sae=sae,
            on_tokens=self._on_tokens,
        )


@pytest.fixture(scope="session")
def laboratory(engine: Engine, tiny: Catalogue) -> Laboratory:
    return Laboratory(engine, tiny)


@pytest.fixture(scope="session")
def every_family(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    """A tiny model of every family that lensd serves."""
    return Laboratory(engine, prepared((*families.FAMILIES, *families.NATIVES), tmp_path_factory))


@pytest.fixture(scope="session")
def hand_built(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    """The model whose circuit was written into its weights."""
    home = tmp_path_factory.mktemp("home")
    prepare_hand_built(tmp_path_factory.mktemp("sources"), home)
    return Laboratory(engine, open_catalogue(home))


@pytest.fixture(scope="session")
def smollm2(engine: Engine, catalogue: Catalogue) -> Laboratory:
    return Laboratory(engine, catalogue)
