"""What a safetensors file says that it holds, checked without torch and before any tensor is allocated."""

import math
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from services.saes.config import CONFIG_FILE, parse_json
from services.saes.errors import InvalidBundle

MAX_HEADER_BYTES = 1_000_000
DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
OLD_SCALE = "scaling_factor"
"""A tensor that SAELens wrote for a while: all ones, or an SAE fine-tuned in a way that it no longer reads."""

_Count = Annotated[int, Field(strict=True, ge=0, lt=1 << 63)]


class TensorEntry(BaseModel):
    """What the header says of one tensor: `data_offsets` count from where the data begins."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    dtype: Annotated[str, Field(max_length=16)]
    shape: Annotated[tuple[_Count, ...], Field(max_length=8)]
    data_offsets: tuple[_Count, _Count]


_HEADER: TypeAdapter[dict[str, TensorEntry]] = TypeAdapter(dict[str, TensorEntry])


def check_header(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Checks a safetensors file's header against the expected tensors and the file's own length.

    Raises InvalidBundle when the file is truncated, padded, oversized, or holds other tensors than `shapes`.
    """
    name = f"{path.parent.name}/{path.name}"
    size, header, start = _header(path, name)
    if OLD_SCALE in header and "b_enc" in shapes:
        shapes = {**shapes, OLD_SCALE: shapes["b_enc"]}
    if set(header) != set(shapes):
        raise InvalidBundle(f"{name} holds the tensors {sorted(header)[:8]!s:.300}, expected {sorted(shapes)}")
    end = 0
    for tensor, entry in sorted(header.items(), key=lambda item: item[1].data_offsets):
        if entry.shape != shapes[tensor]:
            raise InvalidBundle(
                f"{name}: {tensor} has shape {list(entry.shape)}, {CONFIG_FILE} says {list(shapes[tensor])}"
            )
        if entry.dtype not in DTYPE_BYTES:
            raise InvalidBundle(f"{name}: {tensor} has dtype {entry.dtype}, expected one of {sorted(DTYPE_BYTES)}")
        expected = (end, end + math.prod(entry.shape) * DTYPE_BYTES[entry.dtype])
        if entry.data_offsets != expected:
            raise InvalidBundle(f"{name}: {tensor} lies at {list(entry.data_offsets)}, expected {list(expected)}")
        end = expected[1]
    if start + end != size:
        raise InvalidBundle(f"{name} has {size} bytes, its header announces {start + end}: truncated or padded")


def _header(path: Path, name: str) -> tuple[int, dict[str, TensorEntry], int]:
    """(file size, header without metadata, where the data begins)."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
                raise InvalidBundle(
                    f"{name} is no safetensors file, or truncated: a header of {length} bytes in {size}"
                )
            content = file.read(length)
    except OSError as error:
        raise InvalidBundle(f"{name} cannot be read") from error
    header = parse_json(content, f"{name} has no valid safetensors header")
    if isinstance(header, dict):
        header.pop("__metadata__", None)
    try:
        return size, _HEADER.validate_python(header), 8 + length
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the header"
        raise InvalidBundle(f"{name} has no valid safetensors header: {where:.100}: {first['msg']}") from error
