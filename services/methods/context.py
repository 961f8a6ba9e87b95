"""What a method works with: one job's inputs, the model, the engine, and the words for provenance and cost."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version

from services.catalogue.tokenizer import Tokenizer
from services.contracts.generation import NewTokens
from services.contracts.inputs import Inputs
from services.contracts.result import Provenance, SaeProvenance, Usage, Versions
from services.contracts.sae import SaeFacts
from services.engine.decoding import Continuation, Generated, OnToken
from services.engine.engine import Engine
from services.engine.outcome import Execution, Outcome
from services.engine.row import Row
from services.engine.ticket import JobCancelled, JobTicket
from services.engine.weights import Weights
from services.methods.desks import Desks
from services.models.load import LoadedModel
from services.saes.sae import Sae


@cache
def installed_versions() -> Versions:
    """Read once: asking the package metadata takes milliseconds."""
    packages = ("lensd", "torch", "transformers", "transformer-lens")
    return Versions(**{name.replace("-", "_"): version(name) for name in packages})


@dataclass(frozen=True)
class SaeInUse:
    """An SAE in memory and what the catalogue says of it."""

    sae: Sae
    facts: SaeFacts


def _unheard(_news: NewTokens) -> None:
    pass


@dataclass
class MethodContext:
    """One job at work. `run` and `generate` are a method's only ways to the model.

    `on_tokens` hears of new tokens as they come, on the engine's thread: it must return at once. `desks` are shared by
    the jobs of a worker.
    """

    model: LoadedModel
    engine: Engine
    ticket: JobTicket
    inputs: Inputs
    tokenizer: Tokenizer
    sae: SaeInUse | None = None
    on_tokens: Callable[[NewTokens], None] = _unheard
    desks: Desks = field(default_factory=Desks)
    started: float = field(default_factory=time.monotonic)
    warnings: list[str] = field(default_factory=list)
    _execution: Execution = "branched"

    def run(self, rows: Sequence[Row]) -> list[Outcome]:
        """Run all rows and wait; raises what the first failing row raised, JobCancelled when the job was cancelled."""
        with self.ticket.in_engine(), self.desks.away(self.ticket):
            outcomes = self.engine.run(self.model, rows, job=self.ticket)
        if any(outcome.execution == "whole" for outcome in outcomes):
            self._execution = "whole"
        return outcomes

    def generate(self, continuations: Sequence[Continuation], on_token: OnToken) -> list[Generated]:
        """Run all continuations and wait; raises as `run` does."""
        with self.ticket.in_engine(), self.desks.away(self.ticket):
            futures = self.engine.submit_continuations(self.model, continuations, job=self.ticket, on_token=on_token)
            generated = [self.ticket.result_of(future) for future in futures]
        if any(one.execution == "whole" for one in generated):
            self._execution = "whole"
        return generated

    def charge(self, token_layers: int, seconds: float) -> None:
        """Book work done outside the engine, and let others work; raises JobCancelled when the job was cancelled."""
        self.ticket.charge(rows=0, token_layers=float(token_layers), seconds=seconds)
        with self.desks.away(self.ticket):
            pass
        if self.ticket.cancelled():
            raise JobCancelled

    def weights(self) -> Weights:
        return Weights(self.model)

    def provenance(self, method: str, method_version: str, seed: int | None = None) -> Provenance:
        """Where this job's numbers come from; call it after the last row has run."""
        facts = self.model.facts
        used = self.sae.facts if self.sae else None
        return Provenance(
            model=facts.id,
            revision=facts.revision,
            weights_sha256=facts.weights_sha256,
            dtype=str(self.model.dtype).removeprefix("torch."),
            device=str(self.model.device),
            tokenizer_sha256=facts.tokenizer_sha256,
            bos=self.inputs.bos,
            sae=used and SaeProvenance(id=used.id, sha256=used.sha256, config_sha256=used.config_sha256),
            method=method,
            method_version=method_version,
            execution=self._execution,
            seed=seed,
            versions=installed_versions(),
        )

    def usage(self) -> Usage:
        return Usage(
            token_layers=self.ticket.token_layers,
            engine_seconds=round(self.ticket.engine_seconds, 6),
            seconds=round(time.monotonic() - self.started, 6),
        )
