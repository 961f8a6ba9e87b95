"""The models, SAEs and engine of one worker, and how a claimed job meets them."""

import logging
from collections.abc import Callable, Mapping

import torch

from services.catalogue.catalogue import Catalogue, model_folder, sae_folder
from services.contracts.errors import LensdError
from services.contracts.generation import NewTokens
from services.contracts.job import JobResult, JobSpec
from services.engine.engine import Engine, EngineLimits
from services.engine.ticket import JobTicket
from services.jobs.cache import fingerprint
from services.jobs.record import Claim
from services.methods.context import MethodContext, SaeInUse
from services.methods.desks import Desks
from services.methods.origin import runner
from services.methods.registry import run_method
from services.models.cache import ModelCache
from services.models.load import LoadedModel, load_model
from services.saes.prepared import load_prepared
from services.saes.sae import Sae
from services.saes.shelf import SaeShelf
from worker.settings import WorkerSettings

log = logging.getLogger("lensd.worker")


class Laboratory:
    """Loads what a job needs and runs it. Building one loads nothing, but starts the engine's thread.

    `on_batch` hears of the jobs in a batch before it runs, on the engine's thread.
    """

    def __init__(
        self, settings: WorkerSettings, catalogue: Catalogue, on_batch: Callable[[frozenset[str]], None]
    ) -> None:
        self._catalogue = catalogue
        self._device = torch.device(settings.device)
        self._dtype: torch.dtype = getattr(torch, settings.dtype)
        self.runner = runner(self._device, self._dtype)
        """What decides the numbers besides a job's model and SAE."""
        torch.set_num_threads(settings.threads)
        limits = EngineLimits(
            batch_tokens=settings.batch_tokens,
            gradient_batch_tokens=settings.gradient_batch_tokens,
            base_run_bytes=settings.base_run_bytes,
            past_bytes=settings.past_bytes,
            threads=settings.threads,
        )
        self._engine = Engine(limits, on_batch=on_batch)
        self._desks = Desks()
        self._models = ModelCache(self._load_model, self._size_of, limit_bytes=settings.model_cache_bytes)
        self._saes = SaeShelf(self._load_sae, settings.sae_cache_bytes)

    def run(
        self, claim: Claim, ticket: JobTicket, on_tokens: Callable[[NewTokens], None] = lambda _: None
    ) -> JobResult:
        """Run a claimed job; raises what its model's loading or its method raises. `on_tokens` must return at once."""
        with self._models.use(claim.spec.model) as model:
            context = MethodContext(
                model=model,
                engine=self._engine,
                ticket=ticket,
                inputs=claim.inputs,
                tokenizer=self._catalogue.tokenizer(claim.spec.model),
                sae=self._sae_for(claim.spec),
                on_tokens=on_tokens,
                desks=self._desks,
            )
            return run_method(claim.spec, context)

    def fingerprint_of(self, spec: JobSpec) -> str:
        """Of what computes `spec` here: see `services.jobs.cache`."""
        sae_id = spec.sae_id()
        sae = None if sae_id is None else self._catalogue.sae(sae_id)
        return fingerprint(self.runner, self._catalogue.model(spec.model), sae)

    def preload(self) -> None:
        """Load every served model that fits and try it out, so that the first job need not wait."""
        for model_id in self._catalogue.models:
            try:
                with self._models.use(model_id) as model:
                    log.info("model %s is loaded, its rows run %s", model_id, self._engine.warm_up(model))
            except LensdError as error:
                log.error("model %s could not be loaded: %s", model_id, error.message)

    def models(self) -> Mapping[str, str]:
        """Which models are here, and whether they are loaded yet."""
        return self._models.statuses()

    def close(self) -> None:
        self._engine.close()

    def _sae_for(self, spec: JobSpec) -> SaeInUse | None:
        sae_id = spec.sae_id()
        return None if sae_id is None else SaeInUse(self._saes.get(sae_id), self._catalogue.sae(sae_id))

    def _load_model(self, model_id: str) -> LoadedModel:
        folder = model_folder(self._catalogue.home, model_id)
        return load_model(folder, self._catalogue.model(model_id), device=self._device, dtype=self._dtype)

    def _size_of(self, model_id: str) -> int:
        return self._catalogue.model(model_id).weight_bytes * self._dtype.itemsize // torch.float32.itemsize

    def _load_sae(self, sae_id: str) -> Sae:
        facts = self._catalogue.sae(sae_id)
        folder = sae_folder(self._catalogue.home, sae_id)
        return load_prepared(folder, facts, self._catalogue.model(facts.model), self._device)
