"""Labels as clients set them: one at a time, or many as lines of a file."""

from typing import Annotated

from pydantic import Field

from services.contracts.base import BLANK, Contract, Request
from services.contracts.features import FeatureIndex

LabelText = Annotated[str, Field(min_length=1, max_length=2_000, pattern=f"[^{BLANK}]")]
Author = Annotated[str, Field(min_length=1, max_length=200, description="Who or what says so: a person, a model.")]
Method = Annotated[str, Field(min_length=1, max_length=100, description="How it was found: `manual`, `autointerp`, …")]


class LabelRequest(Request):
    """What somebody says a feature is. `shared`: for every tenant, which only the operator's keys may say."""

    text: LabelText
    author: Author | None = None
    method: Method | None = None
    shared: bool = False


class LabelLine(LabelRequest):
    """One line of an import: a label and the feature it belongs to."""

    index: FeatureIndex


class LabelImport(Contract):
    """What an import did. A label that replaces an earlier one counts as well."""

    stored: Annotated[int, Field(description="Labels stored, shared ones among them.")]
    shared: Annotated[int, Field(description="Of these, how many are shared.")]
