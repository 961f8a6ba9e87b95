"""What the features of an SAE are: the card of one, and lists to search."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from api.auth import Reader
from api.dependencies import GatewayServices, Services
from api.documented import body, problems
from api.errors import InvalidParameters, ProblemItem
from api.routes.labels import FeatureNumber, require_feature
from api.routes.saes import SaeId
from services.catalogue.feature_indexes import FeatureFilter, FeatureSort, SortKey
from services.contracts.base import Contract, TokenId
from services.contracts.errors import Refused
from services.contracts.feature_card import FeatureSummary

router = APIRouter(prefix="/v1/saes", tags=["features"])

Figure = Annotated[float | None, Field(ge=0, le=1e30, allow_inf_nan=False)]
Text = Annotated[str | None, Field(min_length=1, max_length=200)]


class FeatureQuery(BaseModel):
    """Which features to list; all conditions hold."""

    model_config = ConfigDict(extra="forbid")

    min_density: Figure = None
    max_density: Figure = None
    min_max_activation: Figure = None
    max_max_activation: Figure = None
    promoted: Annotated[Text, Field(description="A token's string among those it promotes, its space included.")] = None
    promoted_id: Annotated[TokenId | None, Field(description="A token's id among those it promotes.")] = None
    text: Annotated[Text, Field(description="Text within one of its contexts, in any case.")] = None
    label: Annotated[Text, Field(description="Text within a label that the caller sees, in any case.")] = None
    labelled: Annotated[bool | None, Field(description="Whether it has a label that the caller sees.")] = None
    sort: SortKey = "index"
    order: Literal["ascending", "descending"] = "ascending"
    cursor: Annotated[str | None, Field(max_length=500, description="As the previous page gave it.")] = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20


class FeatureList(Contract):
    """A page of features."""

    features: tuple[FeatureSummary, ...]
    cursor: Annotated[str | None, Field(description="Ask for the next page with it; null on the last one.")]


@router.get(
    "/{sae_id}/features/{index}",
    operation_id="get_feature",
    response_class=Response,
    responses={200: body("FeatureCard", "The card, with the labels that the caller sees."), **problems(404, 422)},
)
def get_feature(services: Services, key: Reader, sae_id: SaeId, index: FeatureNumber) -> Response:
    """One feature: how often and how strongly it fires, on what, what it writes, its neighbours and its labels."""
    facts = services.catalogue_for(key).sae(sae_id)
    require_feature(facts, index)
    card = services.features.of(sae_id).card(index)
    labels = services.labels.of(key.owner, sae_id, [index]).get(index, ())
    whole = card.model_copy(update={"labels": labels, "effects_per_token_scale": facts.scales_tokens})
    return Response(whole.model_dump_json(), media_type="application/json")


@router.get(
    "/{sae_id}/features",
    operation_id="list_features",
    response_class=Response,
    responses={200: body("FeatureList", "A page of features."), **problems(404, 422)},
)
def list_features(services: Services, key: Reader, sae_id: SaeId, query: Annotated[FeatureQuery, Query()]) -> Response:
    """The features of an SAE that meet every condition, with their strongest contexts and labels."""
    index = services.features.of(services.catalogue_for(key).sae(sae_id).id)
    where = _filter(services, key.owner, sae_id, query)
    sort = FeatureSort(query.sort, query.order == "descending")
    try:
        page = index.list(where, sort, query.cursor, query.limit)
    except Refused as error:
        raise InvalidParameters((ProblemItem(parameter="cursor", code=error.code, message=error.message),)) from error
    labels = services.labels.of(key.owner, sae_id, [feature.index for feature in page.features])
    features = [feature.model_copy(update={"labels": labels.get(feature.index, ())}) for feature in page.features]
    whole = FeatureList(features=tuple(features), cursor=page.cursor)
    return Response(whole.model_dump_json(), media_type="application/json")


def _filter(services: GatewayServices, owner: str, sae_id: str, query: FeatureQuery) -> FeatureFilter:
    """The conditions of `query`; those on labels become indices, since an index knows no labels."""
    only: frozenset[int] | None = None
    but: frozenset[int] = frozenset()
    if query.label is not None or query.labelled is not None:
        every = services.labels.every(owner, sae_id)
        wanted = (query.label or "").lower()
        if query.labelled is False:
            but = frozenset(item.index for item in every)
        if query.label is not None or query.labelled:
            only = frozenset(item.index for item in every if wanted in item.label.text.lower())
    return FeatureFilter(
        min_density=query.min_density,
        max_density=query.max_density,
        min_max_activation=query.min_max_activation,
        max_max_activation=query.max_max_activation,
        promoted=query.promoted,
        promoted_id=query.promoted_id,
        text=query.text,
        only=only,
        but=but,
    )
