"""From the operator's source to a folder of the store: one safetensors file, a tokenizer, and the model's facts.

1. find the source inside its root and check its sha256;
2. write weights, config and tokenizer in Hugging Face's layout (a GGUF file is dequantised, shards are joined);
3. load the result as a worker would, probe its sites, and write what was found as `facts.json`.

Nothing here touches the network, runs remote code or reads pickled weights.
"""

import shutil
from pathlib import Path
from typing import Any

import tokenizers
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from services.catalogue.catalogue import FACTS, model_folder
from services.catalogue.operator import (
    CatalogueError,
    FolderSource,
    GgufSource,
    HuggingFaceSource,
    ModelEntry,
    NativeSource,
    file_sha256,
    package_folder,
    resolve_inside,
    weights_sha256,
)
from services.catalogue.store import preparing
from services.catalogue.tokenizer import Tokenizer
from services.contracts.errors import JobFailed
from services.contracts.model import ModelFacts
from services.models.config_file import first_line, transformers_config
from services.models.load import WEIGHTS, LoadedModel, load_model, read_config
from services.models.native import read_native_config
from services.models.probe import mlp_width, probe_sites
from services.models.speed import token_layers_per_second

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def prepare_model(entry: ModelEntry, root: Path, home: Path) -> ModelFacts:
    """Put the model that `entry` describes into the store under `home`, and return its facts.

    Raises:
        CatalogueError: the source is missing, leaves its root, has another sha256, lacks a file that it needs, or has
            one that cannot be read.
    """
    transformers_logging.disable_progress_bar()
    folder = model_folder(home, entry.id)
    with preparing(folder, entry) as partial:
        try:
            _take(entry, root, partial)
            facts = _facts(entry, partial)
        except SafetensorError as error:
            raise CatalogueError(f"{entry.id}: its weights are not valid safetensors: {first_line(error)}") from error
        except JobFailed as error:
            raise CatalogueError(f"{entry.id}: {error.message}") from error
        (partial / FACTS).write_text(facts.model_dump_json(indent=2), encoding="utf-8")
    return facts


def _take(entry: ModelEntry, root: Path, partial: Path) -> None:
    match entry.source:
        case GgufSource():
            _take_gguf(entry.source, root, partial)
        case FolderSource():
            _take_folder(resolve_inside(root, entry.source.path), entry.source.sha256, partial)
        case NativeSource():
            _take_native(resolve_inside(root, entry.source.path), entry.source.sha256, partial)
        case HuggingFaceSource():
            _take_folder(_cached_snapshot(entry.source, root), entry.source.sha256, partial)


def _take_gguf(source: GgufSource, root: Path, partial: Path) -> None:
    file = resolve_inside(package_folder(source.package) if source.package else root, source.path)
    _check_sha256(file_sha256(file), source.sha256, file)
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    tied = set(getattr(model, "_tied_weights_keys", None) or ()) if model.config.tie_word_embeddings else set()
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name not in tied}
    save_file(weights, partial / WEIGHTS, metadata={"format": "pt"})
    config = model.config
    config.architectures = [type(model).__name__]
    del config.quantization_config
    config.save_pretrained(partial)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(partial)


def _take_folder(folder: Path, sha256: str, partial: Path) -> None:
    _take_weights_and_tokenizer(folder, sha256, partial)
    config = transformers_config(folder)
    if not config.architectures:
        raise CatalogueError(f"{folder}/config.json names no architecture: set `architectures`")
    config.save_pretrained(partial)


def _take_native(folder: Path, sha256: str, partial: Path) -> None:
    _take_weights_and_tokenizer(folder, sha256, partial)
    config = read_native_config(folder)
    (partial / "config.json").write_text(config.model_dump_json(indent=2, exclude_none=True), encoding="utf-8")


def _take_weights_and_tokenizer(folder: Path, sha256: str, partial: Path) -> None:
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        raise CatalogueError(f"{folder} holds no safetensors: convert the weights first; pickled ones are never read")
    _check_sha256(weights_sha256(shards), sha256, folder)
    if not (folder / "tokenizer.json").is_file():
        raise CatalogueError(f"{folder} has no tokenizer.json: save the model's fast tokenizer there")
    if len(shards) == 1:
        shutil.copyfile(shards[0], partial / WEIGHTS)
    else:
        weights = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
        save_file(weights, partial / WEIGHTS, metadata={"format": "pt"})
    for name in _TOKENIZER_FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, partial / name)


def _cached_snapshot(source: HuggingFaceSource, root: Path) -> Path:
    cache = resolve_inside(root, source.cache)
    try:
        snapshot = snapshot_download(
            source.repository, revision=source.revision, cache_dir=cache, local_files_only=True
        )
    except LocalEntryNotFoundError as error:
        raise CatalogueError(
            f"{source.repository} at {source.revision} is not in {cache}: fill the cache on a machine with network"
        ) from error
    return Path(snapshot)


def _check_sha256(found: str, expected: str, what: Path) -> None:
    if found != expected:
        raise CatalogueError(f"{what} has sha256 {found}, the catalogue expects {expected}")


def _facts(entry: ModelEntry, folder: Path) -> ModelFacts:
    config = read_config(folder)
    module_facts = _declared_facts(entry, folder, config)
    model = load_model(folder, module_facts, device=torch.device("cpu"), dtype=torch.float32)
    return module_facts.model_copy(update=_measured_facts(model))


def _declared_facts(entry: ModelEntry, folder: Path, config: Any) -> ModelFacts:
    """The facts that stand in the files, before the model has been loaded once."""
    bos_token_id, special, has_chat_template = _tokenizer_facts(entry, folder, config)
    heads = config.num_attention_heads
    return ModelFacts(
        id=entry.id,
        name=entry.name,
        family=config.model_type,
        revision=entry.revision,
        source=entry.source.type,
        license=entry.license,
        weights_sha256=file_sha256(folder / WEIGHTS),
        tokenizer_sha256=file_sha256(folder / "tokenizer.json"),
        layers=config.num_hidden_layers,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        d_model=config.hidden_size,
        d_head=getattr(config, "head_dim", None) or config.hidden_size // heads,
        d_mlp=0,
        vocabulary=config.vocab_size,
        context=config.max_position_embeddings,
        bos_token_id=bos_token_id,
        prepends_bos=bos_token_id is not None and special[:1] == [bos_token_id],
        has_chat_template=has_chat_template,
        parallel_blocks=False,
        post_norms=False,
        logit_soft_cap=getattr(config, "final_logit_softcapping", None),
        sites=(),
        weight_bytes=0,
        token_layers_per_second=0.0,
    )


def _measured_facts(model: LoadedModel) -> dict[str, Any]:
    """The facts that the loaded model shows: its shape as the bridge sees it, and which sites can be written."""
    names = [name for name, _ in model.bridge.original_model.named_modules()]
    return {
        "d_mlp": mlp_width(model),
        "parallel_blocks": bool(model.bridge.cfg.parallel_attn_mlp),
        "post_norms": any(name.endswith("post_feedforward_layernorm") for name in names),
        "sites": probe_sites(model),
        "weight_bytes": model.nbytes,
        "token_layers_per_second": round(token_layers_per_second(model), 1),
    }


def _tokenizer_facts(entry: ModelEntry, folder: Path, config: Any) -> tuple[int | None, list[int], bool]:
    """(the BOS, how the tokenizer itself reads "a", whether there is a chat template)."""
    try:
        bos_token_id = _bos_token_id(folder, config)
        tokenizer = Tokenizer(folder, bos_token_id, config.vocab_size)
        read = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode("a", add_special_tokens=True)
    except Exception as error:  # of the tokenizers library: it raises Exception itself
        raise CatalogueError(f"{entry.id}: its tokenizer cannot be read: {first_line(error)}") from error
    return bos_token_id, read.ids, tokenizer.has_chat_template


def _bos_token_id(folder: Path, config: Any) -> int | None:
    """The tokenizer's BOS where its files name one, else the config's."""
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if tokenizer.bos_token_id is not None:
        return int(tokenizer.bos_token_id)
    return int(config.bos_token_id) if isinstance(config.bos_token_id, int) else None
