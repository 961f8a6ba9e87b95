"""Which sparse autoencoders are served, and what they are like."""

from typing import Annotated

from fastapi import APIRouter, Path

from api.auth import Reader
from api.dependencies import Services
from api.documented import problems
from services.contracts.base import Contract
from services.contracts.sae import SaeFacts

router = APIRouter(prefix="/v1/saes", tags=["saes"])

SaeId = Annotated[str, Path(max_length=64, examples=["smollm2-135m-l15-resid-post"])]


class SaeList(Contract):
    saes: tuple[SaeFacts, ...]


@router.get("", operation_id="list_saes", responses=problems())
def list_saes(services: Services, key: Reader) -> SaeList:
    """Every SAE that the key may use: those of its models."""
    return SaeList(saes=tuple(services.catalogue_for(key).saes.values()))


@router.get("/{sae_id}", operation_id="get_sae", responses=problems(404, 422))
def get_sae(services: Services, key: Reader, sae_id: SaeId) -> SaeFacts:
    """One SAE: the site it reads, its width, its conventions, and its card with every figure measured."""
    return services.catalogue_for(key).sae(sae_id)
