"""Every way in which lensd says no.

The domain raises these; it never speaks of HTTP. The gateway maps each code to a status in one table
(`api/errors.py`), and a test proves that the table is complete.

    LensdError
    ├── InvalidSpec          one or more violations, each with a JSON pointer
    ├── NotFound             no such thing, or not yours
    ├── Conflict             the thing is not in a state that allows it
    ├── Refused              understood, and not allowed
    ├── Unavailable          not now; try again
    │   └── Limited          not now, for this caller: over a limit of its own
    └── JobFailed            a job that ended without a result
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class ErrorCode(StrEnum):
    """Stable, documented names of what went wrong."""

    # The request itself
    INVALID_JSON = "invalid_json"
    INVALID_REQUEST = "invalid_request"
    INVALID_URL = "invalid_url"
    BODY_TOO_LARGE = "body_too_large"
    BODY_TOO_DEEP = "body_too_deep"
    HEADERS_TOO_LARGE = "headers_too_large"
    REQUEST_TIMEOUT = "request_timeout"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    NOT_ACCEPTABLE = "not_acceptable"
    ROUTE_NOT_FOUND = "route_not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    # Who asks
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    # What a specification can get wrong
    UNKNOWN_MODEL = "unknown_model"
    UNKNOWN_SAE = "unknown_sae"
    SAE_MISMATCH = "sae_mismatch"
    UNKNOWN_LAYER = "unknown_layer"
    UNKNOWN_HEAD = "unknown_head"
    UNKNOWN_SITE = "unknown_site"
    UNKNOWN_FEATURE = "unknown_feature"
    UNKNOWN_POSITION = "unknown_position"
    UNEQUAL_LENGTHS = "unequal_lengths"
    INVALID_ANSWER = "invalid_answer"
    INVALID_PROMPT = "invalid_prompt"
    UNKNOWN_TOKEN = "unknown_token"  # noqa: S105 - a code, not a credential
    PROMPT_TOO_LONG = "prompt_too_long"
    UNSUPPORTED_METRIC = "unsupported_metric"
    JOB_TOO_LARGE = "job_too_large"
    UNKNOWN_WEBHOOK = "unknown_webhook"
    # The state of things
    JOB_NOT_FOUND = "job_not_found"
    JOB_RUNNING = "job_running"
    JOB_UNFINISHED = "job_unfinished"
    JOB_WITHOUT_RESULT = "job_without_result"
    RESULT_EXPIRED = "result_expired"
    RESULT_LOST = "result_lost"
    TENSOR_NOT_FOUND = "tensor_not_found"
    UNKNOWN_EXAMPLE = "unknown_example"
    NO_FIGURE = "no_figure"
    FIGURE_TOO_LARGE = "figure_too_large"
    FEATURE_INDEX_MISSING = "feature_index_missing"
    LABEL_NOT_FOUND = "label_not_found"
    TOO_MANY_LABELS = "too_many_labels"
    TOO_MANY_WEBHOOKS = "too_many_webhooks"
    IDEMPOTENCY_CONFLICT = "idempotency_conflict"
    BATCH_NOT_FOUND = "batch_not_found"
    BATCH_UNFINISHED = "batch_unfinished"
    BATCH_CLOSED = "batch_closed"
    INVALID_LINES = "invalid_lines"
    UPLOAD_LOST = "upload_lost"
    KEY_NOT_FOUND = "key_not_found"
    KEY_CHANGED = "key_changed"
    LAST_ADMIN_KEY = "last_admin_key"
    # Over the caller's own limits
    RATE_LIMITED = "rate_limited"
    TOO_MANY_JOBS = "too_many_jobs"
    TOO_MANY_BATCHES = "too_many_batches"
    QUOTA_EXCEEDED = "quota_exceeded"
    # Not now
    QUEUE_FULL = "queue_full"
    STORE_UNAVAILABLE = "store_unavailable"
    NOT_READY = "not_ready"
    INTERNAL = "internal"
    # How a job ends without a result
    WORKER_LOST = "worker_lost"
    METHOD_FAILED = "method_failed"
    MODEL_UNAVAILABLE = "model_unavailable"
    SAE_UNAVAILABLE = "sae_unavailable"
    OUT_OF_MEMORY = "out_of_memory"
    DEADLINE_EXCEEDED = "deadline_exceeded"


@dataclass(frozen=True)
class Violation:
    """One thing wrong with a request: where (an RFC 6901 pointer into the body), what, and what to do instead."""

    pointer: str
    code: ErrorCode
    message: str


class LensdError(Exception):
    """The root: a stable code and a sentence fit for the client."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class InvalidSpec(LensdError):
    """A specification that cannot run as it stands; carries every violation found."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        first, *others = violations
        more = f" (and {len(others)} more)" if others else ""
        super().__init__(first.code, first.message + more)
        self.violations = tuple(violations)


class NotFound(LensdError):
    """No such thing, or it belongs to someone else: the two look the same from outside."""


class Conflict(LensdError):
    """The thing exists, but not in a state that allows what was asked."""


class Refused(LensdError):
    """Understood, and not allowed: no valid key, a missing scope, a body over its bound."""


class Unavailable(LensdError):
    """Not now: the caller may try again after `retry_after_s` seconds."""

    def __init__(self, code: ErrorCode, message: str, retry_after_s: int = 2) -> None:
        super().__init__(code, message)
        self.retry_after_s = retry_after_s


class Limited(Unavailable):
    """The caller is over a limit of its own: its rate, its number of jobs, its work a day. Others are not."""


class JobFailed(LensdError):
    """A job that ends without a result, for a reason the client may read."""
