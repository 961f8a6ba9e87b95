"""The catalogue's models in process: jobs run as a worker runs them, without the service around."""

import json
import os
from itertools import count
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from services.catalogue.catalogue import model_folder, open_catalogue, sae_folder
from services.catalogue.resolve import Limits, resolve
from services.contracts.job import JobResult, JobSpec
from services.engine.engine import Engine, EngineLimits
from services.engine.ticket import JobTicket
from services.methods.context import MethodContext, SaeInUse
from services.methods.desks import Desks
from services.methods.registry import run_method
from services.models.load import load_model
from services.saes.bundle import load_sae

_SPEC: TypeAdapter[JobSpec] = TypeAdapter(JobSpec)


class Laboratory:
    """One model of the store that `LENSD_HOME` names; every job has an owner of its own, so nothing is known before."""

    def __init__(self, model_id: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.home = home = Path(os.environ.get("LENSD_HOME", ".lensd")).resolve()
        self.catalogue = open_catalogue(home)
        facts = self.catalogue.model(model_id)
        self.model = load_model(model_folder(home, model_id), facts, device=torch.device("cpu"), dtype=torch.float32)
        self.engine = Engine(EngineLimits(threads=threads))
        self.desks = Desks()
        self._owners = count()
        self._saes: dict[str, SaeInUse] = {}

    def run(self, body: dict[str, Any], owner: str | None = None) -> JobResult:
        """One job; of an `owner` whose earlier jobs' activations may still be known, or of a new one."""
        spec = _SPEC.validate_json(json.dumps({"model": self.model.facts.id, **body}))
        sae_id = spec.sae_id()
        context = MethodContext(
            model=self.model,
            engine=self.engine,
            ticket=self.ticket(owner),
            inputs=resolve(spec, self.catalogue, Limits()).inputs,
            tokenizer=self.catalogue.tokenizer(spec.model),
            sae=self._sae(sae_id) if sae_id else None,
            desks=self.desks,
        )
        return run_method(spec, context)

    def ticket(self, owner: str | None = None) -> JobTicket:
        """A job's standing with the engine; of a new owner, unless one is named."""
        return JobTicket("job", owner=owner or str(next(self._owners)))

    def _sae(self, sae_id: str) -> SaeInUse:
        """Loaded once."""
        if sae_id not in self._saes:
            self._saes[sae_id] = SaeInUse(load_sae(sae_folder(self.home, sae_id)), self.catalogue.sae(sae_id))
        return self._saes[sae_id]
