"""What all job specifications share."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from services.contracts.base import CatalogueId, Request
from services.contracts.errors import Violation
from services.contracts.inputs import Inputs
from services.contracts.metric import Metric
from services.contracts.model import ModelFacts
from services.contracts.prompt import Answer, Example, Pair, Prompt
from services.contracts.sae import SaeFacts

MetadataKey = Annotated[str, Field(min_length=1, max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]


@dataclass(frozen=True)
class Asked:
    """What a specification wants to be read: its inputs, and the metric that decides which answers they need.

    `references` are further prompts, by where they stand in the body; `stops` tokens that end a text.
    """

    prompts: tuple[Prompt, ...] = ()
    examples: tuple[Example, ...] = ()
    pairs: tuple[Pair, ...] = ()
    references: Mapping[str, Prompt] = field(default_factory=dict)
    stops: tuple[Answer, ...] = ()
    metric: Metric | None = None


class Spec(Request):
    """The base of every job specification."""

    model: CatalogueId
    label: Annotated[str | None, Field(max_length=200)] = None
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)] = {}
    priority: Literal["interactive", "batch"] = "interactive"
    deadline_s: Annotated[
        float | None, Field(gt=0, le=86_400, description="Seconds from creation after which the job is given up.")
    ] = None
    cache: Annotated[
        bool,
        Field(
            description="Whether an earlier result of the same job may answer it, and its result later ones. `label`, "
            "`metadata`, `priority` and `deadline_s` make no difference."
        ),
    ] = True
    bos: Annotated[
        bool | None,
        Field(description="Prepend BOS to text prompts; null leaves it to the SAE's rule, else the tokenizer's own."),
    ] = None

    def asked(self) -> Asked:
        """What is to be read of it."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it wants read")

    def sae_id(self) -> CatalogueId | None:
        """The SAE that it needs."""
        return None

    def sae_pointer(self) -> str:
        """Where in the body it names its SAE."""
        return "/sae"

    def writes_features(self) -> bool:
        """Whether it changes the activation that its SAE reads."""
        return False

    def sae_violations(self, sae: SaeFacts) -> Iterator[Violation]:
        """What its SAE cannot do, or does not have."""
        del sae
        yield from ()

    def violations(self, facts: ModelFacts) -> Iterator[Violation]:
        """What its model cannot do."""
        del facts
        yield from ()

    def input_violations(self, inputs: Inputs) -> Iterator[Violation]:
        """What does not fit its inputs once they are read; asked only when every one of them could be read."""
        del inputs
        yield from ()
