"""What the gateway can be told, through `LENSD_*` variables; nothing else in it reads the environment."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, ByteSize, Field, SecretStr, ValidationError
from pydantic_settings import NoDecode, SettingsConfigDict

from api.strangers import GENEROUS
from services.jobs.limits import OwnerLimits
from services.logs import LogFormat
from services.store_settings import StoreSettings
from services.tenants.limits import SLOWEST, Rate, TenantLimits
from services.webhooks.urls import trusted_hosts

_PLACEHOLDER = re.compile(
    r"change.?(me|this)|replace.?(me|this)|placeholder|example|password|passwd|secret|^x+$|<.*>|\$\{.*\}|^\*+$",
    re.IGNORECASE,
)
_PASSWORD_IN_URL = re.compile(r"^[a-z+]+://[^/@]*:([^/@]*)@", re.IGNORECASE)


def _refuse_placeholder(value: SecretStr) -> SecretStr:
    """A secret copied from an example is no secret: the gateway does not start with one."""
    if _PLACEHOLDER.search(value.get_secret_value()):
        raise ValueError("this is a placeholder: put a real secret in its place")
    return value


def _refuse_placeholder_password(url: SecretStr) -> SecretStr:
    match = _PASSWORD_IN_URL.match(url.get_secret_value())
    if match is not None:
        _refuse_placeholder(SecretStr(match[1]))
    return url


Secret = Annotated[SecretStr, AfterValidator(_refuse_placeholder)]
SecretUrl = Annotated[SecretStr, AfterValidator(_refuse_placeholder_password)]


def _separated(value: object) -> object:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


Origin = Annotated[str, Field(pattern=r"^https?://[A-Za-z0-9.\-\[\]:]+$")]
Origins = Annotated[tuple[Origin, ...], NoDecode, BeforeValidator(_separated)]


def _read_hosts(value: object) -> object:
    return trusted_hosts(value.split(",")) if isinstance(value, str) else value


class GatewaySettings(StoreSettings):
    model_config = SettingsConfigDict(env_prefix="LENSD_", env_ignore_empty=True, frozen=True, extra="ignore")

    home: Path = Path(".lensd")
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65_535)] = 8321
    redis_url: SecretUrl = SecretStr("redis://127.0.0.1:6379/0")
    bootstrap_key: Secret | None = None
    """An API key with all scopes to have; without it, the first start of all makes one and shows it once."""
    pool: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")] = "default"
    """The worker pool that jobs go to."""
    blobs: Literal["folder", "redis"] = "folder"
    log_format: LogFormat = "console"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    max_body: Annotated[ByteSize, Field(ge=1_000, le=100_000_000)] = ByteSize(1_000_000)
    max_lines: Annotated[ByteSize, Field(ge=1_000, le=100_000_000)] = ByteSize(16_000_000)
    """Bytes of a body of JSON lines: an import of labels, a batch."""
    max_job_tokens: Annotated[int, Field(ge=1, le=100_000_000)] = 200_000
    max_job_token_layers: Annotated[int, Field(ge=1, le=10**15)] = 50_000_000
    """Engine work that one job may ask for, by estimate: positions through blocks."""
    max_job_output: Annotated[ByteSize, Field(ge=1_000, le=2**40)] = ByteSize(64 * 2**20)
    """Bytes of one result, by estimate."""
    requests_per_second: Annotated[float, Field(ge=SLOWEST, le=1_000_000)] = 1_000.0
    """What a key may ask for, over all gateways; a key may have a rate of its own, as with all limits that follow."""
    request_burst: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000
    """Requests that a key may make at once."""
    max_owner_jobs: Annotated[int, Field(ge=0, le=1_000_000)] = 20_000
    """Queued and running jobs of one owner."""
    max_owner_running: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Running jobs of one owner; without it only the turns that owners take bound them."""
    owner_queue_share: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of the queue that one owner's jobs may fill."""
    max_owner_batches: Annotated[int, Field(ge=0, le=10_000)] = 20
    """Batches of one owner that have not ended."""
    max_batch_jobs: Annotated[int, Field(ge=1, le=100_000)] = 2_000
    """Jobs of one batch that are queued or running; its other lines wait outside the queue."""
    max_owner_token_layers_a_day: Annotated[int, Field(ge=0, le=10**15)] | None = None
    """Engine work of one owner from midnight to midnight UTC; without it there is no bound."""
    share_results: bool = False
    """Whether a result answers the same question of another tenant too, who then learns that somebody asked it."""
    webhook_hosts: Annotated[frozenset[str], NoDecode, BeforeValidator(_read_hosts)] = frozenset()
    """Hosts (`host`, or `host:port`, separated by commas) that webhooks may reach though they are not public, without
    TLS too: the operator's word that its tenants may post there. All others must be public https on port 443."""
    metrics_host: str = "127.0.0.1"
    metrics_port: Annotated[int | None, Field(ge=1, le=65_535)] = None
    """Where Prometheus scrapes the gateway; without it there are no figures."""
    failed_auth_per_second: Annotated[float, Field(ge=SLOWEST, le=1_000_000)] = GENEROUS.per_second
    failed_auth_burst: Annotated[int, Field(ge=1, le=1_000_000)] = GENEROUS.burst
    """Requests without a valid key that one address may make of one gateway process: at once, and a second after."""
    patience_s: Annotated[float, Field(gt=0, le=3_600)] = 20.0
    """How long a client may take for the head of a request, for its body beside 10 kB/s, or to go on reading."""
    cors_origins: Origins = ()
    """Web pages that may use the API from a browser, as `https://host`, separated by commas; none by default."""
    trusted_proxies: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_separated)] = ()
    """Addresses or networks of proxies whose `X-Forwarded-For` says who asks, separated by commas."""
    shutdown_s: Annotated[int, Field(ge=0, le=600)] = 10
    """How long requests under way may take to end when the gateway is asked to stop."""

    def tenant_limits(self) -> TenantLimits:
        return TenantLimits(
            rate=Rate(self.requests_per_second, self.request_burst),
            jobs=OwnerLimits(
                jobs=self.max_owner_jobs,
                running=self.max_owner_running,
                queue_share=self.owner_queue_share,
                daily_token_layers=self.max_owner_token_layers_a_day,
            ),
        )


def explain(error: ValidationError) -> str:
    """What is wrong with the environment, one line per variable, without the values: some are secrets."""
    return "\n".join(f"lensd: LENSD_{str(problem['loc'][0]).upper()}: {problem['msg']}" for problem in error.errors())
