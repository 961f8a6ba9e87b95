"""`python -m services.saes.recipe --model-dir DIR --out DIR`: from nothing to one SAE per layer, and their cards.

Every stage leaves its product in the work directory, so that a run that was cut short goes on where it stopped.
"""

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from services.saes.bundle import load_sae, save_sae
from services.saes.config import CONFIG_FILE, EXTRAS_FILE, WEIGHTS_FILE, sha256_of
from services.saes.recipe.activations import cache_activations, cached_activations
from services.saes.recipe.card import CARD_FILE, README_FILE, card, check_sample, write_card
from services.saes.recipe.corpus import Corpus, build_corpus
from services.saes.recipe.evaluate import dead_fraction, evaluate
from services.saes.recipe.language_model import lower_model, split_model
from services.saes.recipe.settings import Recipe
from services.saes.recipe.train import train


class Stages:
    """Wall seconds spent per stage, kept across restarts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seconds: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    def of_layer(self, layer: int) -> dict[str, float]:
        """What the SAE of one layer took: the stages shared with the other layers, and its own."""
        shared = {name: value for name, value in self.seconds.items() if "-l" not in name}
        own = {stage: self.seconds.get(f"{stage}-l{layer}", 0.0) for stage in ("training", "evaluation")}
        return {**shared, **own}

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


def make_saes(recipe: Recipe, model_dir: Path, out: Path, work_dir: Path) -> None:
    """Runs every stage and writes one folder per layer into `out`; a layer whose card is there is left alone."""
    stages = Stages(work_dir / "seconds.json")
    wanted = [layer for layer in recipe.layers if not (out / recipe.sae_id(layer) / CARD_FILE).exists()]
    if not wanted:
        print(f"every SAE is in {out}: remove a folder to make it again", flush=True)
        return
    lower = lower_model(model_dir, wanted)
    with stages.stage("corpus"):
        corpus = build_corpus(recipe, model_dir / "tokenizer.json", lower.bos_token_id, work_dir)
    with stages.stage("activations"):
        cache_activations(recipe, lower, corpus.train.tokens, work_dir)
    for layer in wanted:
        folder = out / recipe.sae_id(layer)
        _make_sae(recipe, layer, corpus, stages, model_dir=model_dir, out=folder, work_dir=work_dir)


def _make_sae(
    recipe: Recipe, layer: int, corpus: Corpus, stages: Stages, *, model_dir: Path, out: Path, work_dir: Path
) -> None:
    model = split_model(model_dir, layer)
    shape = (*corpus.train.tokens.shape, model.lower.d_model)
    activations = cached_activations(recipe, layer, shape, work_dir)
    with stages.stage(f"training-l{layer}"):
        trained = train(recipe, layer, activations, work_dir)
    save_sae(trained, out, model_name=recipe.model_name, context=recipe.context)
    sae = load_sae(out)
    sample = check_sample(recipe, corpus)
    with stages.stage(f"evaluation-l{layer}"):
        name = f"l{layer}-{sae.sha256}.safetensors"
        dead = dead_fraction(sae, activations, checkpoint=work_dir / f"dead-{name}")
        heldout = evaluate(sae, model, corpus.heldout.tokens, checkpoint=work_dir / f"heldout-{name}")
        sample_figures = evaluate(sae, model, sample)
    contents = card(
        recipe,
        layer,
        corpus,
        activations,
        model_dir=model_dir,
        out=out,
        heldout=heldout,
        sample=sample_figures,
        dead_fraction=dead,
        seconds=stages.of_layer(layer),
    )
    write_card(contents, sample, out)
    print(f"card: {out / README_FILE}; the catalogue pins this SAE by {_pins(out)}", flush=True)


def _pins(folder: Path) -> str:
    files = {"sha256": WEIGHTS_FILE, "config_sha256": CONFIG_FILE, "extras_sha256": EXTRAS_FILE}
    return ", ".join(f'{name} = "{sha256_of(folder / file)}"' for name, file in files.items())


def main() -> None:
    recipe = Recipe()
    parser = argparse.ArgumentParser(prog="python -m services.saes.recipe", description=__doc__)
    parser.add_argument("--model-dir", type=Path, required=True, help=f"prepared folder of {recipe.model_id}")
    parser.add_argument("--out", type=Path, required=True, help="where the SAEs' folders go")
    parser.add_argument(
        "--layers", type=int, nargs="+", default=list(recipe.layers), help="which layers (default: %(default)s)"
    )
    parser.add_argument("--work-dir", type=Path, default=Path(".lensd/recipe"), help="cache of some GB, may be deleted")
    parser.add_argument("--threads", type=int, default=2, help="torch threads; more than the free cores is a disaster")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    recipe = replace(recipe, layers=tuple(arguments.layers))
    make_saes(recipe, arguments.model_dir, arguments.out, arguments.work_dir / recipe.model_id)


if __name__ == "__main__":
    main()
