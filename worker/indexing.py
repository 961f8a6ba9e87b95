"""`lensd-worker index-sae`: the engine reads a corpus for SAEs of one model, and their feature indexes are written."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from services.catalogue.catalogue import Catalogue, model_folder, open_catalogue, sae_folder
from services.catalogue.operator import CatalogueError
from services.catalogue.tokenizer import Tokenizer
from services.contracts.model import ModelFacts
from services.contracts.sae import SaeFacts
from services.engine.engine import Engine, EngineLimits
from services.engine.row import Row
from services.engine.ticket import JobTicket
from services.engine.weights import Weights
from services.methods.sae_places import SaePlaces
from services.models.load import LoadedModel, load_model
from services.saes.index.build import build_indexes, fingerprint
from services.saes.index.corpus import read_corpus
from services.saes.prepared import load_prepared
from worker.settings import WorkerSettings


class EngineRunner:
    """The model as an index needs it, run by the engine: rows stop at the deepest SAE's layer."""

    def __init__(
        self, engine: Engine, model: LoadedModel, tokenizer: Tokenizer, saes: Sequence[SaeFacts], *, bos: int | None
    ) -> None:
        """`bos` is put before every row, unless it is None."""
        self._engine, self._model, self._tokenizer = engine, model, tokenizer
        self._places = {facts.id: SaePlaces(facts, model) for facts in saes}
        self._before = () if bos is None else (bos,)
        self._ticket = JobTicket("index-sae", owner="")

    def activations(self, rows: Sequence[Sequence[int]]) -> Sequence[Mapping[str, Float[Tensor, "token d_model"]]]:
        captures = tuple(dict.fromkeys(places.reads for places in self._places.values()))
        asked = [Row((*self._before, *row), captures=captures) for row in rows]
        return [
            {sae_id: places.inputs(outcome)[len(self._before) :].float() for sae_id, places in self._places.items()}
            for outcome in self._engine.run(self._model, asked, job=self._ticket)
        ]

    @torch.no_grad()
    def logits(self, sae_id: str, directions: Float[Tensor, "feature d_out"]) -> Float[Tensor, "feature vocabulary"]:
        weights = Weights(self._model)
        return weights.unembedded(self._places[sae_id].in_residual_stream(directions, weights))

    def token_string(self, token: int) -> str:
        return self._tokenizer.string(token)


def index_saes(
    ids: Sequence[str], settings: WorkerSettings, *, corpus_path: Path, limit: int | None, outputs: Mapping[str, Path]
) -> None:
    """Make the indexes of prepared SAEs of one model in one pass, each written to its path in `outputs`.

    Raises CatalogueError for SAEs that are not prepared or do not go together, and for a corpus that cannot be used.
    """
    catalogue = open_catalogue(settings.home)
    saes = _go_together(ids, catalogue)
    facts = catalogue.model(saes[0].model)
    tokenizer = catalogue.tokenizer(facts.id)
    bos = _bos(saes[0], facts)
    corpus = read_corpus(corpus_path, tokenizer, bos=bos is not None, limit=limit, context=facts.context)
    device = torch.device(settings.device)
    loaded = {sae.id: load_prepared(sae_folder(settings.home, sae.id), sae, facts, device) for sae in saes}
    torch.set_num_threads(settings.threads)
    model = load_model(
        model_folder(settings.home, facts.id), facts, device=device, dtype=getattr(torch, settings.dtype)
    )
    work = settings.home / "indexing" / fingerprint(loaded, corpus, f"{facts.weights_sha256} {settings.dtype}")
    with Engine(EngineLimits(batch_tokens=settings.batch_tokens, threads=settings.threads)) as engine:
        runner = EngineRunner(engine, model, tokenizer, saes, bos=bos)
        build_indexes(loaded, corpus, runner, outputs=outputs, work=work, tell=_tell)


def _go_together(ids: Sequence[str], catalogue: Catalogue) -> list[SaeFacts]:
    missing = sorted(set(ids) - set(catalogue.saes))
    if missing:
        raise CatalogueError(f"{', '.join(missing)} is not prepared: run `lensd-worker prepare {' '.join(missing)}`")
    saes = [catalogue.sae(sae_id) for sae_id in dict.fromkeys(ids)]
    for sae in saes[1:]:
        if (sae.model, sae.bos) != (saes[0].model, saes[0].bos):
            raise CatalogueError(f"{sae.id} and {saes[0].id} differ in their model or BOS rule: index one by one")
    return saes


def _bos(sae: SaeFacts, facts: ModelFacts) -> int | None:
    """The token before every row: the SAE's rule, else the tokenizer's own."""
    return facts.bos_token_id if (facts.prepends_bos if sae.bos is None else sae.bos) else None


def _tell(message: str) -> None:
    print(f"indexing: {message}", flush=True)
