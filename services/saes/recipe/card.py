"""The SAE's card: `card.json` for machines, `README.md` for people, both from the same measured values."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from services.saes.config import CONFIG_FILE, EXTRAS_FILE, WEIGHTS_FILE, sha256_of
from services.saes.recipe.activations import Activations
from services.saes.recipe.corpus import Corpus, Tokens
from services.saes.recipe.evaluate import Figures
from services.saes.recipe.settings import Recipe
from services.saes.recipe.sources import SOURCES

CARD_FILE = "card.json"
CHECK_SAMPLE_FILE = "check_sample.json"
README_FILE = "README.md"
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy")


def check_sample(recipe: Recipe, corpus: Corpus) -> Tokens:
    """The first held-out rows whose text is in the public domain, small enough to ship and to measure in a test."""
    free = [index for index, source in enumerate(SOURCES) if source.public_domain]
    return corpus.heldout.tokens[np.isin(corpus.heldout.source, free)][: recipe.check_sample_rows]


def card(
    recipe: Recipe,
    layer: int,
    corpus: Corpus,
    activations: Activations,
    *,
    model_dir: Path,
    out: Path,
    heldout: Figures,
    sample: Figures,
    dead_fraction: float,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Everything the card says, as JSON."""
    return {
        "id": recipe.sae_id(layer),
        "license": "Apache-2.0",
        "model": {
            "id": recipe.model_id,
            "name": recipe.model_name,
            "weights_sha256": sha256_of(model_dir / "model.safetensors"),
            "tokenizer_sha256": sha256_of(model_dir / "tokenizer.json"),
        },
        "files": {name: sha256_of(out / name) for name in (WEIGHTS_FILE, EXTRAS_FILE, CONFIG_FILE)},
        "recipe": {**asdict(recipe), "layer": layer, "hook_name": recipe.hook_name(layer)},
        "training": {
            "tokens": int(corpus.train.tokens.size),
            "tokens_over_norm": int(corpus.train.tokens.size - len(activations.kept)),
            "samples": len(activations.kept) // recipe.batch_size * recipe.batch_size * recipe.epochs,
            "median_norm": activations.median_norm,
            "norm_threshold": activations.norm_threshold,
            "dead_fraction": dead_fraction,
            "seconds": {stage: round(value, 1) for stage, value in seconds.items()},
        },
        "heldout": asdict(heldout),
        "check_sample": asdict(sample),
        "sources": corpus.facts,
        "versions": {package: version(package) for package in PACKAGES},
    }


def write_card(contents: dict[str, Any], sample: Tokens, out: Path) -> None:
    """Writes card.json, README.md and the check sample into the SAE's folder."""
    (out / CARD_FILE).write_text(json.dumps(contents, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (out / CHECK_SAMPLE_FILE).write_text(json.dumps({"tokens": sample.tolist()}) + "\n", encoding="utf-8")
    (out / README_FILE).write_text(render(contents), encoding="utf-8")


def render(contents: Mapping[str, Any]) -> str:
    """The card as Markdown."""
    recipe, training = contents["recipe"], contents["training"]
    return f"""# {contents["id"]}

A TopK sparse autoencoder (k = {recipe["k"]}, {recipe["d_sae"]:,} latents) on `{recipe["hook_name"]}` of
{contents["model"]["name"]}, in SAELens' format (float16 weights, computed with in float32). {contents["license"]}.
Made by `make sae`; this page is generated from `{CARD_FILE}`, every figure in it is measured by the recipe.

## Held-out documents

{_figures_table(contents["heldout"])}

Tokens whose norm exceeds {training["norm_threshold"]:.1f} ({recipe["norm_factor"]:g} times the training median: BOS and
other attention sinks) are neither encoded nor replaced, in any of the runs. Explained variance is against the stored
mean activation; cross-entropies are in nats over all next-token predictions.

## Training

{training["tokens"]:,} tokens in rows of {recipe["context"]} that begin with BOS; {training["tokens_over_norm"]:,} of
them are over the norm threshold and left out. {recipe["epochs"]} epochs, {training["samples"]:,} samples.
Of the latents {training["dead_fraction"]:.1%} fire on no training token.
Wall time: {_seconds(training["seconds"])}.

## Text

{_sources_table(contents["sources"])}

`{CHECK_SAMPLE_FILE}` holds {contents["check_sample"]["rows"]} held-out rows of the public-domain sources, as token
ids; a test measures the SAE on them again and compares with `check_sample` in `{CARD_FILE}`.
"""


def _figures_table(figures: Mapping[str, Any]) -> str:
    rows = [
        ("tokens", f"{figures['tokens']:,}"),
        ("of them over the norm threshold", f"{figures['tokens_over_norm']:,}"),
        ("L0", f"{figures['l0']:.2f}"),
        ("explained variance", f"{figures['explained_variance']:.4f}"),
        ("cosine similarity", f"{figures['cosine']:.4f}"),
        ("mean squared error per dimension", f"{figures['mse']:.3f}"),
        ("cross-entropy, clean", f"{figures['cross_entropy_clean']:.4f}"),
        ("cross-entropy, with the SAE", f"{figures['cross_entropy_sae']:.4f}"),
        ("cross-entropy, zero ablation", f"{figures['cross_entropy_zero_ablation']:.4f}"),
        ("cross-entropy, mean ablation", f"{figures['cross_entropy_mean_ablation']:.4f}"),
        ("cross-entropy recovered, against zero ablation", f"{figures['recovered_against_zero']:.2%}"),
        ("cross-entropy recovered, against mean ablation", f"{figures['recovered_against_mean']:.2%}"),
        ("latents that fire on none of these tokens", f"{figures['silent_fraction']:.1%}"),
        ("latents that fire on more than a tenth of them", f"{figures['dense_fraction']:.2%}"),
    ]
    return "\n".join(["| figure | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _sources_table(sources: list[dict[str, Any]]) -> str:
    rows = [
        f"| {source['attribution']} | {source['licence']} | {source['train_tokens']:,} | {source['heldout_tokens']:,} |"
        for source in sources
    ]
    return "\n".join(["| text | licence | training tokens | held-out tokens |", "|---|---|---|---|", *rows])


def _seconds(seconds: Mapping[str, float]) -> str:
    return ", ".join(f"{stage} {value / 60:.1f} min" for stage, value in seconds.items())
