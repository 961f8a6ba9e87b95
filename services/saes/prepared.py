"""From a prepared folder of the store to an SAE in memory: exactly the files that its facts state, and no other."""

from pathlib import Path

import torch

from services.contracts.model import ModelFacts
from services.contracts.place import width_of
from services.contracts.sae import SaeFacts
from services.saes.bundle import load_sae
from services.saes.config import CONFIG_FILE, EXTRAS_FILE
from services.saes.errors import InvalidBundle
from services.saes.sae import Sae


def load_prepared(folder: Path, facts: SaeFacts, model: ModelFacts, device: torch.device) -> Sae:
    """The SAE that `facts` describes, in float32, on the `model` that it was prepared for.

    Raises InvalidBundle for files that are not the ones that were prepared, and for a folder prepared before cfg.json
    was pinned; SaeMismatch when the widths differ.
    """
    if facts.config_sha256 is None:
        raise InvalidBundle(
            f"{facts.id} was prepared by an older lensd, which did not pin its {CONFIG_FILE}: the operator has to run "
            f"`lensd-worker prepare {facts.id}` and to start the worker again"
        )
    if facts.extras_sha256 is None and (folder / EXTRAS_FILE).exists():
        raise InvalidBundle(f"{facts.id}/{EXTRAS_FILE} was not there when {facts.id} was prepared: prepare it again")
    return load_sae(
        folder,
        device,
        torch.float32,
        expected_sha256=facts.sha256,
        expected_config_sha256=facts.config_sha256,
        expected_extras_sha256=facts.extras_sha256,
        d_model=width_of(facts.site, model),
    )
