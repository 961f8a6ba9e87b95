"""What a worker can be told, through `LENSD_*` variables; nothing else in the worker reads the environment."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from services.logs import LogFormat
from services.store_settings import StoreSettings


def _three_quarters_of_slots(settings: dict[str, Any]) -> int:
    slots: int = settings["slots"]
    return max(1, 3 * slots // 4)


class WorkerSettings(StoreSettings):
    model_config = SettingsConfigDict(env_prefix="LENSD_", frozen=True, extra="ignore", env_ignore_empty=True)

    home: Path = Path(".lensd")
    catalogue: Path = Path("deploy/catalogue.toml")
    pool: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")] = "default"
    device: str = "cpu"
    dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32"
    threads: Annotated[
        int, Field(ge=1, le=256, description="torch's intra-op threads; more than cores is a disaster")
    ] = min(8, os.cpu_count() or 1)
    slots: Annotated[int, Field(ge=1, le=256, description="jobs that may run at once")] = 32
    large_slots: Annotated[
        int,
        Field(ge=1, default_factory=_three_quarters_of_slots, description="large jobs among them, fewer than all"),
    ]
    model_cache_bytes: Annotated[int, Field(gt=0)] = 8 * 2**30
    sae_cache_bytes: Annotated[int, Field(gt=0)] = 2 * 2**30
    batch_tokens: Annotated[int, Field(ge=16, le=1_000_000, description="positions in one batch")] = 768
    gradient_batch_tokens: Annotated[int, Field(ge=16, le=1_000_000, description="in one with gradients")] = 256
    past_bytes: Annotated[int, Field(ge=0, description="for keys and values of texts under way")] = 512 * 2**20
    base_run_bytes: Annotated[int, Field(ge=0)] = 512 * 2**20
    drain_s: Annotated[float, Field(ge=0, le=3_600, description="how long a stopping worker lets its jobs run on")] = (
        5.0
    )
    preload: Annotated[bool, Field(description="load the pool's models at start instead of at the first job")] = True
    blobs: Literal["folder", "redis"] = "folder"
    metrics_host: str = "127.0.0.1"
    worker_metrics_port: Annotated[int | None, Field(ge=1, le=65_535, description="where Prometheus scrapes")] = None
    log_format: LogFormat = "console"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @model_validator(mode="after")
    def _one_slot_is_left_for_small_jobs(self) -> Self:
        if self.large_slots > max(1, self.slots - 1):
            raise ValueError(
                f"LENSD_LARGE_SLOTS is {self.large_slots}, but one of LENSD_SLOTS ({self.slots}) is always left for "
                f"small jobs: at most {max(1, self.slots - 1)}"
            )
        return self
