"""The two bases of everything that travels, and the bounded scalars they share."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Contract(BaseModel):
    """Something lensd says: frozen, with no unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Request(Contract):
    """Something a client says: also strict (no "5" for 5), and finite."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


BLANK = r"\x00-\x20\x7f-\xa0\u1680\u2000-\u200f\u2028-\u202f\u205f\u3000\ufeff"
"""White space and control characters, as in the brackets of a pattern: dialects disagree on what `\\s` is."""

CatalogueId = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$", examples=["smollm2-135m"])]
"""The name of a model or an SAE that the operator serves."""

WebhookId = Annotated[str, Field(pattern=r"^wh_[a-z2-7]{26}$", examples=["wh_abcdefghijklmnopqrstuvwxyz"])]
"""The name of an endpoint that is told when jobs end."""

Layer = Annotated[int, Field(ge=0, le=1_000)]
Head = Annotated[int, Field(ge=0, le=1_000)]
TokenId = Annotated[int, Field(ge=0, le=10_000_000)]
Position = Annotated[int, Field(ge=-1_000_000, le=1_000_000)]
"""A token's position: from 0, or from the end with negatives (−1 is the last)."""
