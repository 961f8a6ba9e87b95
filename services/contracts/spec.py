"""What all job specifications share."""

from typing import Annotated, Literal

from pydantic import Field

from services.contracts.base import CatalogueId, Request

MetadataKey = Annotated[str, Field(min_length=1, max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]


class Spec(Request):
    """The base of every job specification."""

    model: CatalogueId
    label: Annotated[str | None, Field(max_length=200)] = None
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)] = {}
    priority: Literal["interactive", "batch"] = "interactive"
    deadline_s: Annotated[
        float | None, Field(gt=0, le=86_400, description="Seconds from creation after which the job is given up.")
    ] = None
    cache: Annotated[bool, Field(description="Whether an earlier result of the same job may answer.")] = True
    bos: Annotated[
        bool | None,
        Field(description="Prepend BOS to text prompts; null leaves it to the SAE's rule, else the tokenizer's own."),
    ] = None
