"""SAELens' whole registry: what of it is read, and that the docs say so."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from services.catalogue.operator import CatalogueError, SaeLensEntry
from services.saes.formats.gemma_scope_2 import GEMMA_SCOPE_2
from services.saes.formats.origin import Origin
from services.saes.formats.table import FORMATS, REFUSED
from services.saes.hub import locate, releases

pytestmark = pytest.mark.filterwarnings("ignore")

DOCS = Path(__file__).resolve().parents[3] / "docs/saes.md"


def each_sae(kind: str | None) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(release's name, release, SAE) of all that SAELens converts so; None: of its own format."""
    for name, release in releases().items():
        for sae in release["saes"] if release.get("conversion_func") == kind else ():
            yield name, release, sae


def is_located(release: str, sae_id: str) -> bool:
    fields = {"id": "x", "model": "m", "revision": "0" * 40, "cache": "hub", "sha256": "0" * 64}
    try:
        locate(SaeLensEntry(release=release, sae_id=sae_id, **fields))
    except CatalogueError:
        return False
    return True


def test_no_kind_of_release_in_saelens_registry_is_forgotten() -> None:
    kinds = {release.get("conversion_func") for release in releases().values()} - {None}
    assert kinds == {*FORMATS, *REFUSED}


def test_the_docs_say_how_much_of_saelens_registry_is_read() -> None:
    docs = DOCS.read_text(encoding="utf-8")
    total: Counter[str] = Counter()
    for kind in (None, *FORMATS, *REFUSED):
        found = [(name, is_located(name, sae["id"])) for name, _, sae in each_sae(kind)]
        names, read = {name for name, _ in found}, sum(yes for _, yes in found)
        assert read == (0 if kind in REFUSED else len(found))
        total.update({"releases": len(names), "saes": len(found), "read": read})
        total["releases read"] += len(names) if read else 0
        row = (
            f"| {'none' if kind is None else f'`{kind}`'} | {len(names)} | {len(found):,} | {'yes' if read else 'no'} |"
        )
        assert row in docs
    said = f"{total['releases read']} of {total['releases']} releases, {total['read']:,} of {total['saes']:,} SAEs"
    assert said in " ".join(docs.split())


def test_every_folder_of_gemma_scope_2_is_what_saelens_takes_it_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its name alone, as config.json is not needed; SAELens' downloads find nothing."""
    from huggingface_hub.errors import EntryNotFoundError  # noqa: PLC0415
    from sae_lens.loading import pretrained_sae_loaders  # noqa: PLC0415 - takes seconds; only the tests that need it pay

    shapes = {"w_enc": [2, 3], "w_dec": [3, 2], "b_enc": [3], "b_dec": [2], "threshold": [3]}
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}
    tensors["affine_skip_connection"] = torch.zeros(2, 2)

    def downloaded(*_: Any, **__: Any) -> str:
        raise EntryNotFoundError("nothing is there")

    monkeypatch.setattr(pretrained_sae_loaders, "hf_hub_download", downloaded)
    monkeypatch.setattr(pretrained_sae_loaders, "get_safetensors_tensor_shapes", lambda *_: shapes)
    for _, release, sae in each_sae("gemma_3"):
        place = (release["repo_id"], sae["path"])
        theirs = pretrained_sae_loaders.get_gemma_3_config_from_hf(*place, device="cpu")
        ours = GEMMA_SCOPE_2.convert(Origin(*place, said={}, weights=tensors)).config
        ours |= ours["metadata"]
        ours["hook_name"] = ours["hook_name"].replace("mlp.hook_in", "hook_mlp_in")
        for key in ("architecture", "model_name", "hook_name", "prepend_bos", "context_size", "apply_b_dec_to_input"):
            assert ours[key] == theirs[key], (place, key)
        assert ours.get("hook_name_out") == theirs.get("hook_name_out")
