"""`lensd-worker`: the operator's commands that need the model libraries.

lensd-worker prepare [ID ...]     put the catalogue's models and SAEs into the store; what is there already is left
lensd-worker index-sae ID [ID ...] --corpus FILE
                                  find out what the features of SAEs fire on; goes on where it was stopped
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from services.catalogue.catalogue import model_folder, sae_folder
from services.catalogue.feature_indexes import INDEX_FILE
from services.catalogue.operator import AnySaeEntry, CatalogueError, OperatorCatalogue, read_operator_catalogue
from services.catalogue.store import has_index_of, is_prepared
from services.contracts.errors import LensdError
from worker.settings import WorkerSettings


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="lensd-worker", description="Commands that need the model libraries.")
    commands = parser.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser("prepare", help="put the catalogue's models and SAEs into the store")
    prepare.add_argument("ids", nargs="*", metavar="ID", help="only these (default: all)")
    index = commands.add_parser(
        "index-sae", help="make the feature indexes of SAEs of one model, in one pass over text"
    )
    index.add_argument("ids", nargs="+", metavar="ID", help="SAEs that are prepared")
    index.add_argument(
        "--corpus", type=Path, required=True, metavar="FILE", help='JSONL: {"id", "source", "licence", "text"} a line'
    )
    index.add_argument("--tokens", type=_positive, metavar="N", help="only the first N tokens (default: all)")
    index.add_argument(
        "--out", type=Path, metavar="DIR", help="write DIR/ID/features.sqlite (default: beside the SAE, and prepare it)"
    )
    parsed = parser.parse_args(arguments)
    settings = WorkerSettings()
    try:
        if parsed.command == "prepare":
            _prepare(parsed.ids, settings)
        else:
            _index(parsed, settings)
    except LensdError as error:
        sys.exit(f"lensd-worker: {error.message}")


def _prepare(ids: Sequence[str], settings: WorkerSettings) -> None:
    catalogue, root = read_operator_catalogue(settings.catalogue)
    _refuse_unknown(ids, catalogue)
    models = [
        entry
        for entry in catalogue.models
        if _wanted(entry.id, ids) and not is_prepared(model_folder(settings.home, entry.id), entry)
    ]
    saes = [
        entry
        for entry in catalogue.saes
        if _wanted(entry.id, ids) and not _is_prepared(entry, root, sae_folder(settings.home, entry.id))
    ]
    if not models and not saes:
        return
    # Read by the libraries below when they are imported.
    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    # The libraries take seconds to import: only when there is something to do.
    from services.models.prepare import prepare_model  # noqa: PLC0415
    from services.saes.prepare import prepare_sae  # noqa: PLC0415

    for entry in models:
        print(f"preparing the model {entry.id} (once)", flush=True)
        prepare_model(entry, root, settings.home)
    for sae in saes:
        print(f"preparing the SAE {sae.id} (once)", flush=True)
        prepare_sae(sae, root, settings.home)


def _is_prepared(entry: AnySaeEntry, root: Path, folder: Path) -> bool:
    source = None if entry.path is None else root / entry.path
    return is_prepared(folder, entry) and has_index_of(folder, source)


def _index(arguments: argparse.Namespace, settings: WorkerSettings) -> None:
    catalogue, root = read_operator_catalogue(settings.catalogue)
    _refuse_unknown(arguments.ids, catalogue)
    os.environ |= {"HF_HUB_OFFLINE": "1"}
    from worker.indexing import index_saes  # noqa: PLC0415 - as above

    entries = [entry for entry in catalogue.saes if entry.id in arguments.ids]
    outputs = {entry.id: _index_folder(entry, root, arguments.out).resolve() / INDEX_FILE for entry in entries}
    index_saes(arguments.ids, settings, corpus_path=arguments.corpus, limit=arguments.tokens, outputs=outputs)
    if arguments.out is None:
        _prepare(arguments.ids, settings)


def _index_folder(entry: AnySaeEntry, root: Path, out: Path | None) -> Path:
    if out is not None:
        return out / entry.id
    if entry.path is None:
        raise CatalogueError(f"{entry.id} has no folder of its own for an index: give its entry a `path`, or --out")
    return root / entry.path


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _wanted(entry_id: str, ids: Sequence[str]) -> bool:
    return not ids or entry_id in ids


def _refuse_unknown(ids: Sequence[str], catalogue: OperatorCatalogue) -> None:
    known = {model.id for model in catalogue.models} | {sae.id for sae in catalogue.saes}
    unknown = sorted(set(ids) - known)
    if unknown:
        raise CatalogueError(f"the catalogue has no {', '.join(unknown)}: it lists {', '.join(sorted(known))}")


if __name__ == "__main__":
    main()
