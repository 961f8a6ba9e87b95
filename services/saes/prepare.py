"""From the operator's SAE folder to a folder of the store, with the facts that the gateway reads."""

import shutil
from contextlib import closing
from pathlib import Path

import torch

from services.catalogue.catalogue import FACTS, model_folder, sae_folder
from services.catalogue.feature_index import open_index
from services.catalogue.feature_indexes import INDEX_FILE
from services.catalogue.operator import AnySaeEntry, CatalogueError, SaeEntry, SaeLensEntry, resolve_inside
from services.catalogue.store import preparing
from services.contracts.errors import LensdError
from services.contracts.model import ModelFacts
from services.contracts.place import width_of
from services.contracts.sae import IndexFacts, SaeFacts, SaeOutput
from services.saes.bundle import load_sae
from services.saes.config import CONFIG_FILE, EXTRAS_FILE, WEIGHTS_FILE, read_object, refuse_other_sha256, sha256_of
from services.saes.errors import InvalidBundle, SaeMismatch
from services.saes.fold import fold
from services.saes.hooks import Place, place_of
from services.saes.released import check_weights, take_released
from services.saes.sae import Sae

CARD_FILE = "card.json"
ALL_FILES = (CONFIG_FILE, WEIGHTS_FILE, EXTRAS_FILE, CARD_FILE, INDEX_FILE)


def prepare_sae(entry: AnySaeEntry, root: Path, home: Path) -> SaeFacts:
    """Put the SAE that `entry` describes into the store under `home`, and return its facts.

    Raises:
        CatalogueError: the folder or the cached files are missing or leave their root; lensd cannot read the SAE; it
            does not fit its model.
    """
    with preparing(sae_folder(home, entry.id), entry) as partial:
        try:
            fold(partial, _take_all(entry, root, partial))
            sae = load_sae(
                partial,
                torch.device("cpu"),
                torch.float32,
                expected_extras_sha256=entry.extras_sha256 if isinstance(entry, SaeEntry) else None,
            )
            facts = _facts(entry, sae, partial)
        except (InvalidBundle, SaeMismatch) as error:
            raise CatalogueError(f"{entry.id}: {error.message}") from error
        _refuse_misfit(facts, sae.model_id, home)
        (partial / FACTS).write_text(facts.model_dump_json(indent=2), encoding="utf-8")
    return facts


def _take_all(entry: AnySaeEntry, root: Path, partial: Path) -> float | None:
    """Fill `partial` with what the operator pinned; returns the norm scale of its release, if it has one."""
    try:
        if isinstance(entry, SaeLensEntry):
            if entry.path is not None:
                _take(resolve_inside(root, entry.path), (CARD_FILE, INDEX_FILE), partial)
            return take_released(entry, root, partial)
        _take(resolve_inside(root, entry.path), ALL_FILES, partial)
    except OSError as error:
        raise CatalogueError(f"{entry.id}: its files cannot be copied: {error}") from error
    check_weights(entry, partial / WEIGHTS_FILE)
    if entry.config_sha256 is not None and (partial / CONFIG_FILE).is_file():
        refuse_other_sha256(CONFIG_FILE, sha256_of(partial / CONFIG_FILE), entry.config_sha256)
    return None


def _take(source: Path, names: tuple[str, ...], partial: Path) -> None:
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, partial / name)


def _facts(entry: AnySaeEntry, sae: Sae, folder: Path) -> SaeFacts:
    reads = _reads(entry, sae)
    card = folder / CARD_FILE
    return SaeFacts.model_validate(
        {
            "id": entry.id,
            "model": entry.model,
            "architecture": sae.architecture,
            "site": reads.site,
            "layer": reads.layer,
            "d_model": sae.d_model,
            "mlp_norm": reads.normed,
            "output": _output(entry, sae, reads),
            "features": sae.d_sae,
            "k": sae.k,
            "bos": sae.prepend_bos,
            "norm_threshold": sae.norm_threshold,
            "hook_name": sae.hook_name,
            "apply_b_dec_to_input": sae.apply_b_dec_to_input,
            "decoder_norms_folded": sae.decoder_norms_folded,
            "normalize_activations": sae.normalize_activations,
            "sha256": sae.sha256,
            "config_sha256": sae.config_sha256,
            "extras_sha256": sha256_of(extras) if (extras := folder / EXTRAS_FILE).is_file() else None,
            "license": entry.license,
            "index": _index_facts(entry, sae, folder / INDEX_FILE),
            "card": read_object(card) if card.is_file() else {},
        }
    )


def _index_facts(entry: AnySaeEntry, sae: Sae, path: Path) -> IndexFacts | None:
    """What the index beside the SAE was made over; raises CatalogueError for a damaged one, or another SAE's."""
    if not path.is_file():
        return None
    try:
        with closing(open_index(path, sae_id=entry.id)) as index:
            index.check()
    except LensdError as error:
        raise CatalogueError(f"{entry.id}: {error.message}") from error
    if index.facts.sae_sha256 != sae.sha256:
        raise CatalogueError(
            f"{entry.id}: {INDEX_FILE} was made for the weights {index.facts.sae_sha256}, these are {sae.sha256}: "
            "make it again with `lensd-worker index-sae`, or remove it"
        )
    if index.features != sae.d_sae:
        raise CatalogueError(f"{entry.id}: {INDEX_FILE} holds {index.features} features, the SAE has {sae.d_sae}")
    return index.facts


def _refuse_misfit(facts: SaeFacts, trained_on: str | None, home: Path) -> None:
    """Raises CatalogueError for another model's SAE, another width, or a hook that the model does not have."""
    if trained_on is not None and trained_on != facts.model:
        raise CatalogueError(f"{facts.id} was trained on {trained_on}, the catalogue gives it to {facts.model}")
    path = model_folder(home, facts.model) / FACTS
    if not path.is_file():
        return
    model = ModelFacts.model_validate_json(path.read_bytes())
    places = [("reads", facts.site, facts.layer, facts.d_model)]
    if facts.output is not None:
        places.append(("writes", facts.output.site, facts.output.layer, facts.output.width))
    for does, name, layer, width in places:
        if layer >= model.layers:
            raise CatalogueError(f"{facts.id} {does} layer {layer}: {model.id} has layers 0..{model.layers - 1}")
        if width != (there := width_of(name, model)):
            raise CatalogueError(f"{facts.id} {does} {width} dimensions: {model.id} has {there}")
        for site in model.sites:
            if site.name == name and not site.readable:
                raise CatalogueError(f"{facts.id} {does} {name}, which {model.id} does not have: {site.reason}")


def _reads(entry: AnySaeEntry, sae: Sae) -> Place:
    transcodes = sae.hook_name_out is not None
    place = place_of(sae.hook_name, transcodes=transcodes)
    if place is not None:
        return place
    if transcodes:
        raise CatalogueError(
            f"{entry.id} reads {sae.hook_name}: lensd reads transcoders of the residual stream, attn_out, mlp_out and "
            "the MLP's input (mlp.hook_in)"
        )
    raise CatalogueError(
        f"{entry.id} reads {sae.hook_name}: lensd reads SAEs of the residual stream, attn_out, mlp_out and attn.hook_z"
    )


def _output(entry: AnySaeEntry, sae: Sae, reads: Place) -> SaeOutput | None:
    """Where a transcoder writes: as wide as the residual stream, and not before it reads."""
    if sae.hook_name_out is None:
        return None
    writes = place_of(sae.hook_name_out, transcodes=True)
    if writes is None or sae.hook_name_out.endswith(("mlp_in", "hook_in")):
        raise CatalogueError(
            f"{entry.id} writes {sae.hook_name_out}: lensd reads transcoders into the residual stream, attn_out and "
            "mlp_out"
        )
    if not reads.before(writes):
        raise CatalogueError(f"{entry.id} writes {sae.hook_name_out}, which the model has before {sae.hook_name}")
    return SaeOutput(
        site=writes.site,
        layer=writes.layer,
        width=sae.d_out,
        hook_name=sae.hook_name_out,
        skip=sae.W_skip is not None,
    )
