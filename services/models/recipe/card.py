"""The induction model's card: `card.json` for machines, `README.md` for people, both from the same measured values.

Measured on held-out rows of BOS and n distinct random words, said twice; positions count from BOS, which is 0:

- first half: the mean loss (nats) of foretelling the words at 1..n; second half: at n+1..2n. The word at n+1 cannot be
  foretold, nothing says that the row begins again there;
- induction score of a head: its mean attention from t to t − n + 1, t in n+1..2n;
- previous-token score: its mean attention from t to t − 1, t in 1..2n.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from services.catalogue.operator import file_sha256
from services.models.native import NativeForCausalLM
from services.models.recipe.train import FIRST_WORD, Recipe, next_token_losses, repeated_tokens

ID = "induction-2l"
CARD, README = "card.json", "README.md"
FILES = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")
PERIODS = (16, 32, 48, 63)
ROWS = 64
"""Held-out rows of each period."""
HELDOUT_SEED = 1_000_000
PACKAGES = ("torch", "transformer-lens", "tokenizers", "safetensors")


@dataclass(frozen=True)
class Figures:
    """Means over all held-out rows; scores by layer, then head."""

    loss_first_half: float
    loss_second_half: float
    induction: list[list[float]]
    previous_token: list[list[float]]


@torch.no_grad()
def measure(model: NativeForCausalLM) -> Figures:
    """The figures of the card, by the model's own forward pass."""
    generator = torch.Generator().manual_seed(HELDOUT_SEED)
    each = [_measured(model, period, generator) for period in PERIODS]
    losses, induction, previous_token = (torch.stack(figures).mean(0) for figures in zip(*each, strict=True))
    first, second = losses.tolist()
    return Figures(first, second, induction.tolist(), previous_token.tolist())


def _measured(model: NativeForCausalLM, period: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of both halves, induction and previous-token scores [layer, head], of rows of one period."""
    tokens = repeated_tokens(torch.full((ROWS,), period), 1 + 2 * period, model.config.d_vocab, generator)
    patterns: list[Tensor] = []
    handles = [block.attn.register_forward_hook(_keeper(patterns)) for block in model.layers]
    losses = next_token_losses(model(tokens).logits, tokens)
    for handle in handles:
        handle.remove()
    halves = torch.stack([losses[:, :period].mean(), losses[:, period:].mean()])
    pattern = torch.stack(patterns)
    later, second_half = torch.arange(1, 2 * period + 1), torch.arange(period + 1, 2 * period + 1)
    induction = pattern[..., second_half, second_half - period + 1].mean((1, 3))
    previous_token = pattern[..., later, later - 1].mean((1, 3))
    return halves, induction, previous_token


def _keeper(patterns: list[Float[Tensor, "row head query key"]]) -> Callable[..., None]:
    """A hook that keeps the second thing that attention returns: its pattern."""

    def keep(_module: Any, _given: Any, returned: tuple[Tensor, Tensor]) -> None:
        patterns.append(returned[1])

    return keep


def card(recipe: Recipe, figures: Figures, out: Path, *, seconds: float) -> dict[str, Any]:
    """Everything the card says, as JSON."""
    return {
        "id": ID,
        "license": "Apache-2.0",
        "files": {name: file_sha256(out / name) for name in FILES},
        "recipe": {**asdict(recipe), "config": recipe.config.model_dump(exclude_none=True)},
        "training": {
            "steps": recipe.steps,
            "tokens": recipe.steps * recipe.rows * recipe.config.n_ctx,
            "seconds": round(seconds, 1),
        },
        "heldout": {"seed": HELDOUT_SEED, "periods": list(PERIODS), "rows_of_each": ROWS, **asdict(figures)},
        "packages": {name: version(name) for name in PACKAGES},
    }


def write_card(contents: dict[str, Any], out: Path) -> None:
    (out / CARD).write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
    (out / README).write_text(render(contents), encoding="utf-8")


def render(contents: dict[str, Any]) -> str:
    """The card as a page."""
    config, heldout, training = contents["recipe"]["config"], contents["heldout"], contents["training"]
    words = config["d_vocab"] - FIRST_WORD
    positions = "learned" if config["positional_embedding_type"] == "standard" else "rotary"
    first, second = heldout["loss_first_half"], heldout["loss_second_half"]
    return f"""# {contents["id"]}

A transformer of attention alone ({config["n_layers"]} layers of {config["n_heads"]} heads, d_model {config["d_model"]},
{positions} positions, context {config["n_ctx"]}), trained on random words that repeat until it had induction heads.
{contents["license"]}. Made by `make induction-model`; this page is generated from `card.json`, every figure in it is
measured by the recipe.

Its vocabulary is `<bos>`, `<unk>` and {words} words, `t{FIRST_WORD}` to `t{config["d_vocab"] - 1}`, each named by its
token id; text is split at blanks, and BOS is prepended by the tokenizer's own rule.

## Held-out rows

BOS and n distinct random words, said twice: {heldout["rows_of_each"]} rows of each n in
{", ".join(str(period) for period in heldout["periods"])} (seed {heldout["seed"]}).

| figure | value |
|---|---|
| loss, first half (ln {words} = {math.log(words):.3f}) | {first:.4f} |
| loss, second half | {second:.4f} |
| in-context gain, their difference | {first - second:.4f} |

Losses are nats per word. The first word of the second half cannot be foretold, and is part of its loss.

Induction score: mean attention from second-half position t to t − n + 1.

{_scores(heldout["induction"])}

Previous-token score: mean attention from t to t − 1.

{_scores(heldout["previous_token"])}

## Training

{training["steps"]:,} steps of {contents["recipe"]["rows"]} rows ({training["tokens"]:,} tokens) whose periods differ,
{contents["recipe"]["shortest_period"]} to {contents["recipe"]["longest_period"]} words, in {training["seconds"]:.0f}
seconds on one CPU thread; seed {contents["recipe"]["seed"]}.
"""


def _scores(by_layer: Sequence[Sequence[float]]) -> str:
    """A table of layers by heads."""
    heads = "".join(f" head {head} |" for head in range(len(by_layer[0])))
    lines = [f"| |{heads}", "|---|" + "---|" * len(by_layer[0])]
    for layer, scores in enumerate(by_layer):
        lines.append(f"| layer {layer} |" + "".join(f" {score:.3f} |" for score in scores))
    return "\n".join(lines)
