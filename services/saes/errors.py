"""How an SAE on disk is refused."""

from services.contracts.errors import ErrorCode, LensdError


class InvalidBundle(LensdError):
    """The SAE's files are missing, damaged, not the expected ones, or of a kind lensd cannot read."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.SAE_UNAVAILABLE, message)


class SaeMismatch(LensdError):
    """A sound SAE that does not fit the model it is to be used on."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.SAE_MISMATCH, message)
