"""Which models are served, what they are like, and how they read a prompt."""

from collections.abc import Mapping, Sequence
from typing import Annotated

from fastapi import APIRouter, Path, Request
from pydantic import TypeAdapter

from api.auth import Reader
from api.bodies import BodyParser
from api.dependencies import Services
from api.documented import problems, request_body
from services.catalogue.resolve import tokenize
from services.contracts.base import Contract
from services.contracts.base import Request as RequestContract
from services.contracts.model import LoadedModel, ModelFacts, ModelView
from services.contracts.prompt import Prompt
from services.contracts.result import PromptTokens
from services.jobs.ports import WorkerState

router = APIRouter(prefix="/v1/models", tags=["models"])

ModelId = Annotated[str, Path(max_length=64, examples=["smollm2-135m"])]


class ModelList(Contract):
    models: tuple[ModelView, ...]


class TokenizeRequest(RequestContract):
    """A prompt to read. `bos`: whether to prepend BOS to text; null leaves it to the tokenizer's own rule."""

    prompt: Prompt
    bos: bool | None = None


_tokenize_body = BodyParser(TypeAdapter(TokenizeRequest))


@router.get("", operation_id="list_models", responses=problems())
def list_models(services: Services, key: Reader) -> ModelList:
    """Every model that the key may use, and the workers that hold it in memory."""
    workers = services.workers.alive()
    return ModelList(models=tuple(_view(facts, workers) for facts in services.catalogue_for(key).models.values()))


@router.get("/{model_id}", operation_id="get_model", responses=problems(404, 422))
def get_model(services: Services, key: Reader, model_id: ModelId) -> ModelView:
    """One model: its sizes, its sites, its tokenizer's habits, and where it is loaded."""
    return _view(services.catalogue_for(key).model(model_id), services.workers.alive())


@router.post(
    "/{model_id}/tokenize",
    operation_id="tokenize_prompt",
    responses=problems(400, 404, 413, 415, 422),
    openapi_extra=request_body("TokenizeRequest", {"text": {"prompt": "The Eiffel Tower is in Paris"}}),
)
async def tokenize_prompt(request: Request, services: Services, key: Reader, model_id: ModelId) -> PromptTokens:
    """A prompt as a job on this model would read it: ids, strings, and whether BOS was prepended."""
    raw = await request.body()
    catalogue = services.catalogue_for(key)

    def read() -> PromptTokens:
        catalogue.model(model_id)
        asked = _tokenize_body.parse(raw)
        return tokenize(catalogue, model_id, asked.prompt, asked.bos)

    return await services.read(read)


def _view(facts: ModelFacts, workers: Sequence[WorkerState]) -> ModelView:
    loaded = tuple(
        LoadedModel.model_validate({"worker": state.worker, "status": status})
        for state in workers
        if (status := _status(state.models, facts.id)) is not None
    )
    return ModelView(**dict(facts), loaded=loaded)


def _status(models: Mapping[str, str], model_id: str) -> str | None:
    status = models.get(model_id)
    return status if status in ("loading", "loaded") else None
