"""Reading what an SAE's folder says about itself, without torch and before any tensor is allocated.

The folder is SAELens' (6.0 and later): `cfg.json` and `sae_weights.safetensors`. SAELens keeps unknown keys of
`metadata` and ignores other files, so what lensd stores besides travels as `metadata.lensd` in cfg.json (model id, norm
threshold) and in `lensd.safetensors` (the mean activation). A folder without them is read all the same.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from services.saes.errors import InvalidBundle
from services.saes.legacy import as_of_6_0
from services.saes.normalization import Normalization
from services.saes.unread import refuse_other_files, refuse_unread

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"
EXTRAS_FILE = "lensd.safetensors"
MAX_HEADER_BYTES = 1_000_000
DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
OLD_SCALE = "scaling_factor"
"""A tensor that SAELens wrote for a while: all ones, or an SAE fine-tuned in a way that it no longer reads."""

HookName = Annotated[str, Field(pattern=r"^blocks\.\d{1,4}\.[a-z0-9_.]+$")]


class LensdMetadata(BaseModel):
    """What lensd needs and SAELens has no field for."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    model_id: str | None = None
    norm_threshold: float | None = Field(default=None, gt=0, allow_inf_nan=False)


class Metadata(BaseModel):
    """SAELens' metadata, as far as it decides how the SAE is used."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    model_name: str | None = None
    hook_name: HookName
    hook_name_out: HookName | None = None
    prepend_bos: bool | None = None
    lensd: LensdMetadata = LensdMetadata()


class SaeConfig(BaseModel):
    """`cfg.json`. The literals are what lensd can read; anything else is refused by name."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    architecture: Literal[
        "topk",
        "standard",
        "jumprelu",
        "gated",
        "transcoder",
        "skip_transcoder",
        "jumprelu_transcoder",
        "jumprelu_skip_transcoder",
    ]
    d_in: int = Field(gt=0, le=1 << 17)
    d_out: int | None = Field(default=None, gt=0, le=1 << 17)
    d_sae: int = Field(gt=0, le=1 << 22)
    k: int | None = Field(default=None, gt=0)
    apply_b_dec_to_input: bool = True
    rescale_acts_by_decoder_norm: bool = False
    normalize_activations: Normalization = "none"
    reshape_activations: Literal["none", "hook_z"] = "none"
    metadata: Metadata

    @property
    def transcodes(self) -> bool:
        """Whether it writes at another site than it reads."""
        return self.architecture.endswith("transcoder")

    @property
    def skips(self) -> bool:
        """Whether a linear map of its input is added to what it writes."""
        return self.architecture.endswith("skip_transcoder")

    @property
    def written(self) -> int:
        """The width of what it rebuilds."""
        return self.d_out if self.transcodes and self.d_out is not None else self.d_in

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors the weights file must hold."""
        per_feature = ["b_enc"]
        if self.architecture.startswith("jumprelu"):
            per_feature = ["b_enc", "threshold"]
        elif self.architecture == "gated":
            per_feature = ["b_gate", "r_mag", "b_mag"]
        return {
            "W_enc": (self.d_in, self.d_sae),
            "W_dec": (self.d_sae, self.written),
            "b_dec": (self.written,),
            **({"W_skip": (self.written, self.d_in)} if self.skips else {}),
            **dict.fromkeys(per_feature, (self.d_sae,)),
        }


def read_config(folder: Path) -> SaeConfig:
    """Reads and checks `cfg.json`, one of before SAELens 6.0 included. Raises InvalidBundle."""
    path, name = folder / CONFIG_FILE, f"{folder.name}/{CONFIG_FILE}"
    try:
        content = _read_json(path.read_bytes())
        if isinstance(content, dict):
            content = as_of_6_0(content)
            refuse_unread(content, name)
        config = SaeConfig.model_validate(content)
    except OSError as error:
        refuse_other_files(folder)
        raise InvalidBundle(f"no SAE in {folder.name}: {CONFIG_FILE} cannot be read") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise InvalidBundle(f"{name}: {where}: {first['msg']}, not {first['input']!r:.80}") from error
    _refuse_misfits(config, name)
    return config


def _read_json(content: bytes) -> Any:
    """What it holds; what is not JSON as it is, which no config is."""
    try:
        return json.loads(content)
    except ValueError:
        return content


def _refuse_misfits(config: SaeConfig, name: str) -> None:
    """Raises InvalidBundle for a config whose entries do not go together."""
    for why in _misfits(config):
        raise InvalidBundle(f"{name}: {why}")


def _misfits(config: SaeConfig) -> Iterator[str]:
    if config.architecture == "topk" and (config.k is None or config.k > config.d_sae):
        yield f"a topk SAE needs k within 1..{config.d_sae}, not {config.k}"
    reads_z = config.metadata.hook_name.endswith("hook_z")
    if reads_z != (config.reshape_activations == "hook_z"):
        yield (
            f"reshape_activations is {config.reshape_activations} on {config.metadata.hook_name}: "
            "hook_z goes with an SAE of attn.hook_z, and no other"
        )
    if not config.transcodes:
        return
    if reads_z:
        yield "a transcoder of hook_z; SAELens' transcoders do not put heads side by side, and lensd's do not either"
    if config.d_out is None:
        yield "a transcoder needs d_out, the width of what it writes"
    if config.metadata.hook_name_out is None:
        yield "a transcoder needs metadata.hook_name_out: without it nobody knows where it writes"
    if config.apply_b_dec_to_input:
        yield "apply_b_dec_to_input is true: a transcoder's b_dec is of its output; set it to false"


def check_header(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Checks a safetensors file's header against the expected tensors and the file's own length.

    Raises InvalidBundle when the file is truncated, padded, oversized, or holds other tensors than `shapes`.
    """
    name = f"{path.parent.name}/{path.name}"
    size, header, start = _header(path, name)
    if OLD_SCALE in header and "b_enc" in shapes:
        shapes = {**shapes, OLD_SCALE: shapes["b_enc"]}
    if set(header) != set(shapes):
        raise InvalidBundle(f"{name} holds the tensors {sorted(header)[:8]}, expected {sorted(shapes)}")
    end = 0
    for tensor, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        if tuple(entry["shape"]) != shapes[tensor]:
            raise InvalidBundle(
                f"{name}: {tensor} has shape {entry['shape']}, {CONFIG_FILE} says {list(shapes[tensor])}"
            )
        if entry["dtype"] not in DTYPE_BYTES:
            raise InvalidBundle(f"{name}: {tensor} has dtype {entry['dtype']}, expected one of {sorted(DTYPE_BYTES)}")
        expected = [end, end + math.prod(entry["shape"]) * DTYPE_BYTES[entry["dtype"]]]
        if entry["data_offsets"] != expected:
            raise InvalidBundle(f"{name}: {tensor} lies at {entry['data_offsets']}, expected {expected}")
        end = expected[1]
    if start + end != size:
        raise InvalidBundle(f"{name} has {size} bytes, its header announces {start + end}: truncated or padded")


def _header(path: Path, name: str) -> tuple[int, dict[str, Any], int]:
    """(file size, header without metadata, where the data begins)."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
                raise InvalidBundle(
                    f"{name} is no safetensors file, or truncated: a header of {length} bytes in {size}"
                )
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for entry in header.values():
            (entry["dtype"], [int(n) for n in entry["shape"]], [int(n) for n in entry["data_offsets"]])
    except OSError as error:
        raise InvalidBundle(f"{name} cannot be read") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidBundle(f"{name} has no valid safetensors header") from error
    return size, header, 8 + length


def sha256_of(path: Path) -> str:
    """The hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
