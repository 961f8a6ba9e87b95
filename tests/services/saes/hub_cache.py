"""A made-up Hugging Face cache, laid out as huggingface_hub does it."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

REVISION = "0123456789abcdef0123456789abcdef01234567"


def keep(root: Path, files: Mapping[str, bytes], repository: str) -> Path:
    """Puts the files into root/hub: blobs by sha256, links to them in the snapshot, whose folder comes back."""
    kept = root / "hub" / f"models--{repository.replace('/', '--')}"
    snapshot = kept / "snapshots" / REVISION
    for directory in (kept / "blobs", kept / "refs", snapshot):
        directory.mkdir(parents=True, exist_ok=True)
    (kept / "refs" / "main").write_text(REVISION)
    for name, content in files.items():
        blob, link = kept / "blobs" / hashlib.sha256(content).hexdigest(), snapshot / name
        blob.write_bytes(content)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot
