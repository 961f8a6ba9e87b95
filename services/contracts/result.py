"""What every result carries beside its numbers: where they came from and what they cost."""

from typing import Annotated, Literal

from pydantic import Field

from services.contracts.base import CatalogueId, Contract


class SaeProvenance(Contract):
    id: CatalogueId
    sha256: Annotated[str, Field(description="Of its weights file.")]
    config_sha256: Annotated[
        str | None,
        Field(description="Of its cfg.json, which holds its conventions; null in a result of an older lensd."),
    ] = None


class Versions(Contract):
    lensd: str
    torch: str
    transformers: str
    transformer_lens: str


class Provenance(Contract):
    """Enough to compute the same numbers again elsewhere."""

    model: CatalogueId
    revision: str
    weights_sha256: str
    dtype: str
    device: str
    weight_processing: Literal["none"] = "none"
    tokenizer_sha256: str
    bos: Annotated[
        Literal["request", "sae", "tokenizer"], Field(description="Whose rule decided whether BOS was prepended.")
    ]
    sae: SaeProvenance | None = None
    method: str
    method_version: str
    execution: Annotated[
        Literal["branched", "whole"],
        Field(description="How the engine ran the patched runs: same numbers, other cost."),
    ]
    seed: int | None = None
    versions: Versions


class Usage(Contract):
    """What the job cost."""

    token_layers: Annotated[
        int, Field(description="Engine work: positions through blocks of the model, in the unit of the estimate.")
    ]
    engine_seconds: Annotated[float, Field(description="Seconds of the engine's thread spent on this job's batches.")]
    seconds: Annotated[float, Field(description="Wall seconds from claim to result, model loading included.")]


class PromptTokens(Contract):
    """A prompt as the model read it."""

    ids: tuple[int, ...]
    strings: tuple[str, ...]
    bos_prepended: bool


class PairTokens(Contract):
    clean: PromptTokens
    corrupted: PromptTokens


class Baselines(Contract):
    """The metric on the two unpatched runs."""

    clean: float
    corrupted: float


class Result(Contract):
    """The base of every result."""

    warnings: tuple[str, ...] = ()
    provenance: Provenance
    usage: Usage
