"""`python -m services.models.recipe --out DIR`: from nothing to the induction model and its card, in minutes."""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from services.models.native import NativeConfig
from services.models.recipe.card import README, card, measure, write_card
from services.models.recipe.train import BOS, FIRST_WORD, UNKNOWN, Recipe, train


def make_model(recipe: Recipe, out: Path) -> None:
    """Train, measure, and write the model's folder."""
    model, seconds = train(recipe, lambda line: print(line, flush=True))
    out.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(
        recipe.config.model_dump_json(indent=2, exclude_none=True) + "\n", encoding="utf-8"
    )
    _write_tokenizer(recipe.config, out)
    contents = card(recipe, measure(model), out, seconds=seconds)
    write_card(contents, out)
    sha256 = contents["files"]["model.safetensors"]
    print(f'card: {out / README}; the catalogue pins this model by sha256 = "{sha256}"', flush=True)


def _write_tokenizer(config: NativeConfig, out: Path) -> None:
    """Words named by their own token ids, split at blanks, behind BOS."""
    words = {"<bos>": BOS, "<unk>": UNKNOWN} | {f"t{word}": word for word in range(FIRST_WORD, config.d_vocab)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))  # noqa: S106 - no password
    tokenizer.add_special_tokens(["<bos>", "<unk>"])
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])
    tokenizer.save(str(out / "tokenizer.json"))
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<bos>", "unk_token": "<unk>"}
    (out / "tokenizer_config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m services.models.recipe", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="where the model goes")
    parser.add_argument("--threads", type=int, default=1, help="torch threads; more than the free cores is a disaster")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    make_model(Recipe(), arguments.out)


if __name__ == "__main__":
    main()
