"""Reading what an SAE's folder says about itself, without torch.

The folder is SAELens' (6.0 and later): `cfg.json` and `sae_weights.safetensors`. SAELens keeps unknown keys of
`metadata` and ignores other files, so what lensd stores besides travels as `metadata.lensd` in cfg.json (model id, norm
threshold) and in `lensd.safetensors` (the mean activation). A folder without them is read all the same.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from services.saes.errors import InvalidBundle
from services.saes.legacy import as_of_6_0
from services.saes.normalization import Normalization
from services.saes.unread import refuse_other_files, refuse_unread

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"
EXTRAS_FILE = "lensd.safetensors"
MAX_JSON_BYTES = 1_000_000

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
    k: int | None = Field(default=None, gt=0, le=1 << 22)
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


def read_config(folder: Path, *, expected_sha256: str | None = None) -> tuple[SaeConfig, str]:
    """`cfg.json`, one of before SAELens 6.0 included, and the sha256 of the very bytes that were read.

    Raises InvalidBundle, for another sha256 than the expected one before anything is made of them.
    """
    path, name = folder / CONFIG_FILE, f"{folder.name}/{CONFIG_FILE}"
    try:
        content = read_bounded(path)
    except OSError as error:
        refuse_other_files(folder)
        raise InvalidBundle(f"no SAE in {folder.name}: {CONFIG_FILE} cannot be read") from error
    sha256 = hashlib.sha256(content).hexdigest()
    refuse_other_sha256(name, sha256, expected_sha256)
    config = _parsed(parse_json(content, name), name)
    _refuse_misfits(config, name)
    return config, sha256


def _parsed(content: Any, name: str) -> SaeConfig:
    if isinstance(content, dict):
        content = as_of_6_0(content)
        refuse_unread(content, name)
    try:
        return SaeConfig.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise InvalidBundle(f"{name}: {where}: {first['msg']}, not {first['input']!r:.80}") from error


def read_bounded(path: Path) -> bytes:
    """The bytes of a small file. Raises InvalidBundle for one of over MAX_JSON_BYTES, which is not read; OSError."""
    with path.open("rb") as file:
        content = file.read(MAX_JSON_BYTES + 1)
    if len(content) > MAX_JSON_BYTES:
        raise InvalidBundle(f"{path.parent.name}/{path.name} has over {MAX_JSON_BYTES} bytes, more than lensd reads")
    return content


def parse_json(content: bytes, name: str) -> Any:
    """What the file `name` holds; raises InvalidBundle for what is no JSON, or is nested over 200 deep."""
    try:
        return from_json(content)
    except ValueError as error:
        raise InvalidBundle(f"{name}: the file is no JSON that lensd reads: {error}") from error


def read_object(path: Path) -> dict[str, Any]:
    """What a small JSON file holds; raises InvalidBundle when that is no object; OSError."""
    content = parse_json(read_bounded(path), path.name)
    if not isinstance(content, dict):
        raise InvalidBundle(f"{path.name} is no JSON object")
    return content


def refuse_other_sha256(name: str, found: str, expected: str | None) -> None:
    """Raises InvalidBundle when another sha256 was expected of the file `name`."""
    if expected is not None and found != expected:
        raise InvalidBundle(f"{name} has sha256 {found}, expected {expected}")


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


def sha256_of(path: Path) -> str:
    """The hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
