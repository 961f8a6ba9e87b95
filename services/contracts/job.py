"""A job as it travels: the union of specifications, the union of results, and the job's own view."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field
from typing_extensions import TypeAliasType

from services.contracts.ablation import AblationResult, AblationSpec
from services.contracts.activations import ActivationsResult, ActivationsSpec
from services.contracts.attention import AttentionResult, AttentionSpec
from services.contracts.attribution import AttributionResult, AttributionSpec
from services.contracts.base import Contract
from services.contracts.direction import DirectionResult, DirectionSpec
from services.contracts.errors import ErrorCode
from services.contracts.feature_ablation import FeatureAblationResult
from services.contracts.feature_patching import FeaturePatchingResult
from services.contracts.features import FeaturesResult, FeaturesSpec
from services.contracts.generation import GenerationResult, GenerationSpec, NewTokens
from services.contracts.intervention import InterventionResult, InterventionSpec
from services.contracts.logit_lens import LogitLensResult, LogitLensSpec
from services.contracts.patching import PatchingResult, PatchingSpec
from services.contracts.sae_evaluation import SaeEvaluationResult, SaeEvaluationSpec

JobSpec = TypeAliasType(
    "JobSpec",
    Annotated[
        PatchingSpec
        | AttributionSpec
        | FeaturesSpec
        | ActivationsSpec
        | InterventionSpec
        | LogitLensSpec
        | AblationSpec
        | AttentionSpec
        | SaeEvaluationSpec
        | GenerationSpec
        | DirectionSpec,
        Field(discriminator="kind"),
    ],
)
AnyPatchingResult = TypeAliasType(
    "AnyPatchingResult", Annotated[PatchingResult | FeaturePatchingResult, Field(discriminator="method")]
)
AnyAblationResult = TypeAliasType(
    "AnyAblationResult", Annotated[AblationResult | FeatureAblationResult, Field(discriminator="method")]
)
JobResult = TypeAliasType(
    "JobResult",
    Annotated[
        AnyPatchingResult
        | AttributionResult
        | FeaturesResult
        | ActivationsResult
        | InterventionResult
        | LogitLensResult
        | AnyAblationResult
        | AttentionResult
        | SaeEvaluationResult
        | GenerationResult
        | DirectionResult,
        Field(discriminator="kind"),
    ],
)


class JobStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        return self in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED)


class JobProgress(Contract):
    """Rows of engine work done, of those planned so far."""

    done: int
    planned: int


class JobError(Contract):
    """Why a job has no result. `correlation_id` names the log lines that tell more to the operator."""

    code: ErrorCode
    message: str
    correlation_id: str | None = None


class JobSummary(Contract):
    """A job without its result."""

    id: Annotated[str, Field(pattern=r"^job_[a-z2-7]{26}$")]
    kind: str
    model: str
    status: JobStatus
    label: str | None
    metadata: dict[str, str]
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime | None
    attempt: int
    progress: JobProgress
    cached: bool
    error: JobError | None


class JobState(JobSummary):
    """A job as it is now, looked at by itself."""

    queued_ahead: Annotated[
        int | None,
        Field(
            description="About how many jobs start before this one, if none came after it; null when it is not queued, "
            "or when that cannot be told now. Owners take turns, so of others' jobs only those count whose turn comes "
            "first. An estimate: jobs still to come can go first, and several start at a time."
        ),
    ]


class JobTokens(JobState):
    """A job that generates, with the tokens that came since the last event."""

    tokens: tuple[NewTokens, ...]


class JobView(JobState):
    """A job, with its result once it has succeeded."""

    result: JobResult | None
