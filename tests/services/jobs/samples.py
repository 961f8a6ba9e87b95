"""Jobs and results as small as they come."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from pydantic import TypeAdapter

from services.contracts.inputs import Inputs
from services.contracts.job import JobSpec
from services.contracts.patching import PatchedPair, PatchingResult
from services.contracts.result import Baselines, PairTokens, PromptTokens, Provenance, Usage, Versions
from services.contracts.site import SiteName
from services.contracts.tensor import InlineTensor, Statistic
from services.jobs.ids import new_job_id
from services.jobs.record import NewJob, StoredResult, Succeeded

_SPEC: TypeAdapter[JobSpec] = TypeAdapter(JobSpec)

DONE = Succeeded(StoredResult(document='{"kind":"features"}'))


def new_job(owner: str = "ada", pool: str = "default", cost: int = 60, **spec: Any) -> NewJob:
    fields = {"kind": "features", "model": "tiny", "sae": "tiny-sae", "prompts": ["Paris"], **spec}
    prompt = PromptTokens(ids=(5, 7), strings=("Par", "is"), bos_prepended=False)
    return NewJob(
        id=new_job_id(),
        owner=owner,
        pool=pool,
        spec=_SPEC.validate_json(orjson.dumps(fields)),
        inputs=Inputs(prompts=(prompt,), bos="tokenizer"),
        cost=cost,
    )


def patching_result(
    effects: npt.ArrayLike, normalized: npt.ArrayLike, per_pair: Sequence[Statistic] = ()
) -> PatchingResult:
    """A result whose `effects` and `normalized` are layer × position; one pair for each of `per_pair`."""
    tokens = PromptTokens(ids=(1,), strings=("a",), bos_prepended=False)
    return PatchingResult(
        site=SiteName.RESID_PRE,
        mode="denoising",
        layers=(0, 1),
        positions=(0, "S2"),
        pairs=tuple(
            PatchedPair(
                tokens=PairTokens(clean=tokens, corrupted=tokens),
                differing_positions=(0,),
                baselines=Baselines(clean=3.12, corrupted=-4.16),
                effects=estimate,
            )
            for estimate in per_pair
        ),
        effects=InlineTensor.of(effects, ("layer", "position")),
        normalized=InlineTensor.of(normalized, ("layer", "position")),
        provenance=Provenance(
            model="tiny",
            revision="1",
            weights_sha256="0" * 64,
            dtype="float32",
            device="cpu",
            tokenizer_sha256="0" * 64,
            bos="tokenizer",
            method="activation_patching",
            method_version="1",
            execution="branched",
            versions=Versions(lensd="0", torch="0", transformers="0", transformer_lens="0"),
        ),
        usage=Usage(token_layers=1, engine_seconds=0.1, seconds=0.1),
    )


def statistic(mean: npt.ArrayLike) -> Statistic:
    values = np.asarray(mean, dtype=np.float32)
    dims = ("layer", "position")
    return Statistic(
        mean=InlineTensor.of(values, dims), standard_error=InlineTensor.of(np.zeros_like(values), dims), count=2
    )
