import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from services.catalogue.catalogue import model_folder, open_catalogue
from services.catalogue.operator import CatalogueError, HuggingFaceSource, ModelEntry, weights_sha256
from services.catalogue.store import is_prepared
from services.contracts.errors import ErrorCode, JobFailed
from services.contracts.model import ModelFacts
from services.models.load import load_model
from services.models.prepare import prepare_model
from tests.prepared import prepare_family, tiny_entry

REVISION = "0123456789abcdef0123456789abcdef01234567"


def logits(home: Path, facts: ModelFacts) -> torch.Tensor:
    model = load_model(model_folder(home, facts.id), facts, device=torch.device("cpu"), dtype=torch.float32)
    found: torch.Tensor = model.bridge(torch.tensor([[5, 6, 7, 8]]))
    return found


def in_hugging_face_layout(folder: Path, cache: Path) -> None:
    """A cache as the hub's client leaves it: blobs, and snapshots of links into them."""
    repository = cache / "models--someone--tiny"
    snapshot = repository / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for path in folder.iterdir():
        shutil.copyfile(path, repository / "blobs" / path.name)
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)


def test_the_gguf_model_has_the_facts_that_its_makers_state(home: Path) -> None:
    facts = open_catalogue(home).model("smollm2-135m")
    sizes = (facts.layers, facts.heads, facts.kv_heads, facts.d_model, facts.d_head, facts.d_mlp, facts.vocabulary)
    assert sizes == (30, 9, 3, 576, 64, 1536, 49152)
    assert (facts.source, facts.family, facts.context) == ("gguf", "llama", 8192)
    assert not facts.prepends_bos
    assert facts.has_chat_template
    assert all(site.writable for site in facts.sites)


def test_a_folder_is_prepared_once_and_again_when_its_entry_changes(tmp_path: Path) -> None:
    entry = tiny_entry("llama", tmp_path / "sources")
    folder = model_folder(tmp_path, entry.id)
    assert not is_prepared(folder, entry)
    facts = prepare_model(entry, tmp_path / "sources", tmp_path)
    assert is_prepared(folder, entry)
    assert not is_prepared(folder, entry.model_copy(update={"revision": "2"}))
    assert open_catalogue(tmp_path).models == {entry.id: facts}
    assert (facts.layers, facts.heads, facts.kv_heads, facts.d_mlp) == (3, 4, 2, 48)
    assert facts.prepends_bos


def test_shards_are_joined_to_the_same_model(tmp_path: Path) -> None:
    whole = prepare_family("llama", tmp_path / "sources", tmp_path)
    folder = tmp_path / "sources" / "llama"
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, members in shards.items():
        save_file({name: weights[name] for name in members}, folder / file)
    (folder / "model.safetensors").unlink()
    entry = ModelEntry.model_validate(
        {
            "id": "sharded",
            "name": "sharded",
            "revision": "1",
            "source": {"type": "folder", "path": "llama", "sha256": weights_sha256([folder / file for file in shards])},
        }
    )
    sharded = prepare_model(entry, tmp_path / "sources", tmp_path)
    torch.testing.assert_close(logits(tmp_path, sharded), logits(tmp_path, whole), rtol=0, atol=0)


def test_a_hugging_face_name_is_taken_from_its_cache_alone(tmp_path: Path) -> None:
    folder = prepare_family("gpt2", tmp_path / "sources", tmp_path)
    in_hugging_face_layout(tmp_path / "sources" / "gpt2", tmp_path / "cache")
    source = HuggingFaceSource(
        type="hugging_face",
        repository="someone/tiny",
        revision=REVISION,
        cache="cache",
        sha256=folder.weights_sha256,
    )
    entry = ModelEntry(id="cached", name="tiny", revision=REVISION, source=source)
    facts = prepare_model(entry, tmp_path, tmp_path)
    assert facts.source == "hugging_face"
    torch.testing.assert_close(logits(tmp_path, facts), logits(tmp_path, folder), rtol=0, atol=0)
    absent = entry.model_copy(update={"source": source.model_copy(update={"repository": "someone/else"})})
    with pytest.raises(CatalogueError, match="fill the cache"):
        prepare_model(absent, tmp_path, tmp_path)


def test_a_source_that_is_not_what_the_catalogue_says_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    entry = tiny_entry("llama", tmp_path / "sources")
    folder = tmp_path / "sources" / "llama"
    (folder / "model.safetensors").rename(tmp_path / "weights")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(CatalogueError, match="pickled ones are never read"):
        prepare_model(entry, tmp_path / "sources", tmp_path)
    (folder / "model.safetensors").write_bytes((tmp_path / "weights").read_bytes()[:-1] + b"!")
    with pytest.raises(CatalogueError, match="the catalogue expects"):
        prepare_model(entry, tmp_path / "sources", tmp_path)
    shutil.copyfile(tmp_path / "weights", folder / "model.safetensors")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CatalogueError, match=r"no tokenizer\.json"):
        prepare_model(entry, tmp_path / "sources", tmp_path)
    assert list((tmp_path / "models").iterdir()) == []


def test_a_config_without_an_architecture_is_refused(tmp_path: Path) -> None:
    entry = tiny_entry("llama", tmp_path / "sources")
    path = tmp_path / "sources" / "llama" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    del config["architectures"]
    path.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(CatalogueError, match="names no architecture"):
        prepare_model(entry, tmp_path / "sources", tmp_path)


DEEP = b"[" * 100_000


DAMAGED_CONFIGS = {
    "missing": None,
    "cut short": b"{",
    "no object": b"[]",
    "too deep": DEEP,
    "no text": b"\xff",
    "another model": b'{"model_type": "unheard_of"}',
    "too large": b" " * 16_000_001,
}


@pytest.mark.parametrize("content", DAMAGED_CONFIGS.values(), ids=DAMAGED_CONFIGS)
def test_a_config_that_cannot_be_read_is_refused_when_prepared_and_ends_a_job(
    tmp_path: Path, content: bytes | None
) -> None:
    entry = tiny_entry("llama", tmp_path / "sources")
    facts = prepare_model(entry, tmp_path / "sources", tmp_path)
    stored = model_folder(tmp_path, entry.id)
    for folder in (tmp_path / "sources" / "llama", stored):
        (folder / "config.json").unlink()
        if content is not None:
            (folder / "config.json").write_bytes(content)
    with pytest.raises(CatalogueError, match=r"^tiny-llama: the model's config.json cannot be read: [^\n]*$"):
        prepare_model(entry, tmp_path / "sources", tmp_path / "other")
    with pytest.raises(JobFailed, match=r"config.json cannot be read") as failed:
        load_model(stored, facts, device=torch.device("cpu"), dtype=torch.float32)
    assert failed.value.code is ErrorCode.MODEL_UNAVAILABLE


def test_fields_that_a_family_does_not_accept_are_refused(tmp_path: Path) -> None:
    entry = tiny_entry("llama", tmp_path / "sources")
    path = tmp_path / "sources" / "llama" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"num_hidden_layers": ["three"]}), encoding="utf-8")
    with pytest.raises(CatalogueError, match=r"^tiny-llama: .*transformers does not accept it: [^\n]*$"):
        prepare_model(entry, tmp_path / "sources", tmp_path)


@pytest.mark.parametrize("family", ["llama", "native_attention"])
@pytest.mark.parametrize(
    "header",
    [DEEP, b'{"w": {"dtype": ["F32"], "shape": [Infinity], "data_offsets": [0, 4]}}'],
    ids=["too deep", "wrong types"],
)
def test_weights_with_a_damaged_header_are_refused(tmp_path: Path, family: str, header: bytes) -> None:
    entry = tiny_entry(family, tmp_path / "sources")
    path = tmp_path / "sources" / family / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    source = entry.source.model_copy(update={"sha256": weights_sha256([path])})
    with pytest.raises(CatalogueError, match=r"the weights of tiny-\S+ are not valid safetensors: [^\n]*$"):
        prepare_model(entry.model_copy(update={"source": source}), tmp_path / "sources", tmp_path)


def test_a_damaged_shard_is_refused(tmp_path: Path) -> None:
    entry = tiny_entry("llama", tmp_path / "sources")
    whole = tmp_path / "sources" / "llama" / "model.safetensors"
    damaged = whole.with_name("model-2.safetensors")
    damaged.write_bytes(len(DEEP).to_bytes(8, "little") + DEEP)
    source = entry.source.model_copy(update={"sha256": weights_sha256([whole, damaged])})
    with pytest.raises(CatalogueError, match=r"^tiny-llama: its weights are not valid safetensors: [^\n]*$"):
        prepare_model(entry.model_copy(update={"source": source}), tmp_path / "sources", tmp_path)


def test_a_native_models_weights_of_other_names_are_refused(tmp_path: Path) -> None:
    entry = tiny_entry("native_attention", tmp_path / "sources")
    path = tmp_path / "sources" / "native_attention" / "model.safetensors"
    save_file({"other": torch.zeros(1)}, path)
    source = entry.source.model_copy(update={"sha256": weights_sha256([path])})
    with pytest.raises(CatalogueError, match=r"are not those that its config.json describes: [^\n]*$"):
        prepare_model(entry.model_copy(update={"source": source}), tmp_path / "sources", tmp_path)


@pytest.mark.parametrize("content", [b"{", DEEP, b"{}"], ids=["cut short", "too deep", "empty"])
def test_a_damaged_tokenizer_is_refused(tmp_path: Path, content: bytes) -> None:
    entry = tiny_entry("llama", tmp_path / "sources")
    (tmp_path / "sources" / "llama" / "tokenizer.json").write_bytes(content)
    with pytest.raises(CatalogueError, match=r"^tiny-llama: its tokenizer cannot be read: [^\n]*$"):
        prepare_model(entry, tmp_path / "sources", tmp_path)
