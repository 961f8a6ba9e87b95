"""Settings of the launcher, from the environment."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, ByteSize, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

AbsolutePath = Annotated[Path, AfterValidator(lambda path: path.expanduser().resolve())]
"""A path that means the same to the children, which run in another directory."""


class LocalSettings(BaseSettings):
    """What `python -m deploy.local` reads, as `LENSD_<NAME>`; the other settings reach worker and gateway untouched."""

    model_config = SettingsConfigDict(env_prefix="LENSD_", env_ignore_empty=True, extra="ignore", frozen=True)

    home: AbsolutePath = Field(Path(".lensd"), validate_default=True)
    """The data directory: models, SAEs, blobs, Valkey's append-only file, run files."""
    host: str = "127.0.0.1"
    port: int = Field(8321, ge=1, le=65_535)
    bootstrap_key: SecretStr | None = None
    """An API key with all scopes to have; without it the first start makes one."""
    catalogue: AbsolutePath | None = None
    """The operator's catalogue of models and SAEs; without it the one that comes with lensd."""
    valkey_maxmemory: ByteSize = Field(ByteSize(512 * 2**20), ge=64 * 2**20)
    drain_s: float = Field(5, ge=0, le=3_600)
    """How long a stopping worker lets its jobs run on before it hands them back."""
    shutdown_s: float = Field(10, ge=0, le=600)
    """How long a stopping gateway lets the requests under way run on."""
    start_timeout_s: float = Field(180, gt=0)

    @property
    def reach_host(self) -> str:
        """The address at which a client on this machine reaches the gateway."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - compared with, not bound

    @property
    def base_url(self) -> str:
        """The gateway's URL as a client on this machine would write it."""
        host = f"[{self.reach_host}]" if ":" in self.reach_host else self.reach_host
        return f"http://{host}:{self.port}"
