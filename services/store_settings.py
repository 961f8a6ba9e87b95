"""Where the store is, and what it keeps: what gateway, worker and the operator's commands are told about it alike."""

from typing import Annotated, Any
from urllib.parse import urlencode, urlsplit, urlunsplit

from pydantic import ByteSize, Field, FilePath, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings

from services.jobs.policy import JobPolicy

_TLS_PARAMETERS = {
    "redis_ca_file": "ssl_ca_certs",
    "redis_cert_file": "ssl_certfile",
    "redis_key_file": "ssl_keyfile",
}


class StoreSettings(BaseSettings):
    redis_url: SecretStr = SecretStr("redis://127.0.0.1:6379/0")
    """`rediss://user:password@host:6379/0` for TLS and an ACL user."""
    redis_ca_file: FilePath | None = None
    """The authorities that the server's certificate is checked by; without it the system's."""
    redis_cert_file: FilePath | None = None
    """A certificate to show to the server."""
    redis_key_file: FilePath | None = None
    """Its key, where the certificate's file does not have it."""
    store_ephemeral: bool = False
    """Whether the server may be one without an append-only file, with which every job is lost when it ends."""
    retention_h: Annotated[float, Field(ge=1, le=720)] = 24.0
    """Hours that a job is kept after its end, and a batch after its own. Whoever ends it decides: set all alike."""
    max_redis_blobs: Annotated[ByteSize, Field(ge=1_000_000, le=2**40)] = ByteSize(256 * 2**20)
    """Bytes of all results and uploads together that `LENSD_BLOBS=redis` keeps in the store."""

    @field_validator(*_TLS_PARAMETERS)
    @classmethod
    def _files_need_tls(cls, file: FilePath | None, info: ValidationInfo) -> FilePath | None:
        url: SecretStr | None = info.data.get("redis_url")
        if file is not None and url is not None and urlsplit(url.get_secret_value()).scheme != "rediss":
            raise ValueError("LENSD_REDIS_URL does not ask for TLS: it has to begin with rediss://")
        return file

    def job_policy(self) -> JobPolicy:
        return JobPolicy(retention_s=self.retention_h * 3600)

    @property
    def store_url(self) -> str:
        """The address as redis-py and Celery's transport both read it, secrets included."""
        url = urlsplit(self.redis_url.get_secret_value())
        if url.scheme != "rediss":
            return url.geturl()
        files: dict[str, Any] = {name: getattr(self, field) for field, name in _TLS_PARAMETERS.items()}
        # Celery's transport speaks TLS only when some such parameter is there.
        tls = {"ssl_cert_reqs": "required"} | {name: file.resolve() for name, file in files.items() if file is not None}
        return urlunsplit(url._replace(query="&".join(part for part in (url.query, urlencode(tls)) if part)))
