"""A batch's lines as the gateway reads and submits them: each as a post of its job would be."""

import orjson
from pydantic import TypeAdapter, ValidationError

from api.bodies import BodyParser
from api.dependencies import GatewayServices
from api.submission import admitted, submitted
from services.batches.intake import ReadLine
from services.contracts.batch import BatchLine, CustomId, LineFault
from services.contracts.errors import ErrorCode, InvalidSpec, LensdError, Unavailable
from services.jobs.record import NewJob
from services.tenants.keys import ApiKey

MAX_MESSAGE_CHARACTERS = 500

_line: BodyParser[BatchLine] = BodyParser(TypeAdapter(BatchLine))
_custom_id: TypeAdapter[str] = TypeAdapter(CustomId)


class GatewayIntake:
    """Implements `services.batches.intake.Intake`; a line may have as many bytes as the body of a post."""

    def __init__(self, services: GatewayServices, max_bytes: int) -> None:
        self._services = services
        self._max_bytes = max_bytes

    def read(self, line: bytes, key: ApiKey) -> ReadLine:
        if len(line) > self._max_bytes:
            message = f"the line has {len(line):,} bytes: at most {self._max_bytes:,}; split the work over several jobs"
            return ReadLine(None, fault=LineFault(code=ErrorCode.BODY_TOO_LARGE, message=message))
        try:
            asked = _line.parse(line)
        except LensdError as error:
            return ReadLine(_custom_id_of(line), fault=_fault(error))
        try:
            return ReadLine(asked.custom_id, admitted(asked.job, key, self._services))
        except Unavailable:
            raise
        except LensdError as error:
            return ReadLine(asked.custom_id, fault=_fault(error, within="/job"))

    def submit(self, job: NewJob) -> None:
        submitted(job, self._services)

    def daily_token_layers(self, key: ApiKey) -> int | None:
        return self._services.tenants.jobs_of(key.limits).daily_token_layers


def _custom_id_of(line: bytes) -> str | None:
    """The custom id of a line that is wrong, if at least that can be read."""
    try:
        return _custom_id.validate_python(orjson.loads(line)["custom_id"], strict=True)
    except (orjson.JSONDecodeError, ValidationError, KeyError, TypeError):
        return None


def _fault(error: LensdError, within: str = "") -> LineFault:
    pointer = within + error.violations[0].pointer if isinstance(error, InvalidSpec) else within
    message = error.message
    if len(message) > MAX_MESSAGE_CHARACTERS:
        message = f"{message[:MAX_MESSAGE_CHARACTERS]}…"
    return LineFault(code=error.code, message=message, pointer=pointer[:MAX_MESSAGE_CHARACTERS])
