"""A model's config.json, read within bounds: what cannot be read ends a job, or preparing, with a sentence."""

from pathlib import Path
from typing import Any

from pydantic_core import from_json
from transformers import AutoConfig

from services.contracts.errors import ErrorCode, JobFailed

CONFIG_FILE = "config.json"
MAX_CONFIG_BYTES = 16_000_000


def config_fields(folder: Path) -> dict[str, Any]:
    """The file's fields. Raises JobFailed (`model_unavailable`) when it is missing, too large, or no JSON object."""
    try:
        with (folder / CONFIG_FILE).open("rb") as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise _unreadable("it is missing or cannot be opened") from error
    if len(content) > MAX_CONFIG_BYTES:
        raise _unreadable(f"it has over {MAX_CONFIG_BYTES} bytes")
    try:
        fields = from_json(content)
    except ValueError as error:
        raise _unreadable(f"it is no JSON that lensd reads: {error}") from error
    if not isinstance(fields, dict):
        raise _unreadable("it is no JSON object")
    return fields


def transformers_config(folder: Path) -> Any:
    """The file as transformers reads it, no remote code; raises JobFailed (`model_unavailable`)."""
    config_fields(folder)
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # each family's class checks in its own way, and raises what it likes
        raise _unreadable(f"transformers does not accept it: {first_line(error)}") from error


def _unreadable(why: str) -> JobFailed:
    return JobFailed(ErrorCode.MODEL_UNAVAILABLE, f"the model's {CONFIG_FILE} cannot be read: {why}")


def first_line(error: Exception) -> str:
    """The beginning of what a library says went wrong."""
    return f"{(str(error).strip() or type(error).__name__).splitlines()[0]:.300}"
