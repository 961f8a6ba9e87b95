"""`lensd-worker`: the operator's commands that need the model libraries.

lensd-worker prepare [ID ...]     put the catalogue's models and SAEs into the store; what is there already is left
"""

import argparse
import os
import sys
from collections.abc import Sequence

from services.catalogue.catalogue import model_folder, sae_folder
from services.catalogue.operator import CatalogueError, OperatorCatalogue, read_operator_catalogue
from services.catalogue.store import is_prepared
from worker.settings import WorkerSettings


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="lensd-worker", description="Commands that need the model libraries.")
    commands = parser.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser("prepare", help="put the catalogue's models and SAEs into the store")
    prepare.add_argument("ids", nargs="*", metavar="ID", help="only these (default: all)")
    parsed = parser.parse_args(arguments)
    try:
        _prepare(parsed.ids, WorkerSettings())
    except CatalogueError as error:
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
        if _wanted(entry.id, ids) and not is_prepared(sae_folder(settings.home, entry.id), entry)
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


def _wanted(entry_id: str, ids: Sequence[str]) -> bool:
    return not ids or entry_id in ids


def _refuse_unknown(ids: Sequence[str], catalogue: OperatorCatalogue) -> None:
    known = {model.id for model in catalogue.models} | {sae.id for sae in catalogue.saes}
    unknown = sorted(set(ids) - known)
    if unknown:
        raise CatalogueError(f"the catalogue has no {', '.join(unknown)}: it lists {', '.join(sorted(known))}")


if __name__ == "__main__":
    main()
