"""`python -m services.saes.recipe --model-dir DIR --out DIR`: from nothing to an SAE and its card.

Every stage leaves its product in the work directory, so that a run that was cut short goes on where it stopped.
"""

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from services.saes.bundle import load_sae, save_sae
from services.saes.recipe.activations import cache_activations
from services.saes.recipe.card import README_FILE, card, check_sample, write_card
from services.saes.recipe.corpus import build_corpus
from services.saes.recipe.evaluate import dead_fraction, evaluate
from services.saes.recipe.language_model import split_model
from services.saes.recipe.settings import Recipe
from services.saes.recipe.train import train


class Stages:
    """Wall seconds spent per stage, kept across restarts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seconds: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the block's duration to the stage, also when it is interrupted."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps(self.seconds))


def make_sae(recipe: Recipe, model_dir: Path, out: Path, work_dir: Path) -> None:
    """Runs every stage and writes the SAE's folder."""
    stages = Stages(work_dir / "seconds.json")
    model = split_model(model_dir, recipe.layer)
    with stages.stage("corpus"):
        corpus = build_corpus(recipe, model_dir / "tokenizer.json", model.bos_token_id, work_dir)
    with stages.stage("activations"):
        activations = cache_activations(recipe, model, corpus.train.tokens, work_dir)
    with stages.stage("training"):
        trained = train(recipe, activations, work_dir)
    save_sae(trained, out, model_name=recipe.model_name, context=recipe.context)
    sae = load_sae(out)
    sample = check_sample(recipe, corpus)
    with stages.stage("evaluation"):
        dead = dead_fraction(sae, activations)
        heldout = evaluate(sae, model, corpus.heldout.tokens)
        sample_figures = evaluate(sae, model, sample)
    contents = card(
        recipe,
        corpus,
        activations,
        model_dir=model_dir,
        out=out,
        heldout=heldout,
        sample=sample_figures,
        dead_fraction=dead,
        seconds=stages.seconds,
    )
    write_card(contents, sample, out)
    print(f'card: {out / README_FILE}; the catalogue pins this SAE by sha256 = "{sae.sha256}"', flush=True)


def main() -> None:
    recipe = Recipe()
    parser = argparse.ArgumentParser(prog="python -m services.saes.recipe", description=__doc__)
    parser.add_argument("--model-dir", type=Path, required=True, help=f"prepared folder of {recipe.model_id}")
    parser.add_argument("--out", type=Path, required=True, help="where the SAE goes")
    parser.add_argument(
        "--work-dir", type=Path, default=Path(".lensd/recipe"), help="cache of a few GB, may be deleted"
    )
    parser.add_argument("--threads", type=int, default=2, help="torch threads; more than the free cores is a disaster")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    make_sae(recipe, arguments.model_dir, arguments.out, arguments.work_dir / recipe.sae_id)


if __name__ == "__main__":
    main()
