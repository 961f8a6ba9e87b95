"""What the stores of jobs say of an `Idempotency-Key`."""

from services.contracts.errors import Conflict, ErrorCode, Unavailable


def key_reused() -> Conflict:
    return Conflict(
        ErrorCode.IDEMPOTENCY_CONFLICT,
        "this Idempotency-Key was used for another request: use a fresh key for a new job",
    )


def just_forgotten() -> Unavailable:
    return Unavailable(ErrorCode.STORE_UNAVAILABLE, "the earlier job was just forgotten: try again")
