"""Induction heads in a transformer of two layers and in SmolLM2-135M, by jobs alone (Olsson et al. 2022,
arXiv:2209.11895; Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits").

    LENSD_KEY=... python -m examples.induction [--sequences 32] [--words 48] [--seed 0]

An induction head continues a repeated text: behind "A B … A" it looks at what followed the first A, and writes B. It
needs a head before it that tells each token which one came before. So, in the two-layer model:

1. attention on repeated random tokens: which heads look where;
2. interventions that set heads to zero: what the loss on a repeated text gains by its first half, and without whom;
3. path patching from the first layer's heads into the second layer's keys, queries and values: who tells whom;

and 1 and 2 again in SmolLM2. It writes docs/induction.json, docs/induction-*.png and the tables of docs/induction.md.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from examples.client import Array, Json, Lensd, connect
from examples.induction_paths import Head, composition
from examples.induction_report import INDUCERS, LARGE, OTHERS, SMALL, TELLERS, WEAKEST, write_report

DOCS = Path(__file__).resolve().parents[1] / "docs"

FIRST_WORD, LAST_WORD = 2, 255
"""The small model's words are t2 to t255."""

INDUCTION_SCORE = 0.5
"""Heads that look by more than this at what followed a token's first occurrence are induction heads here."""

KINDS = ("previous_token", "duplicate_token", "induction", "copying")

LISTED = 10
"""So many of SmolLM2's heads are listed with their scores."""


@dataclass(frozen=True)
class Study:
    """The server, and the small model's repeated texts: each so many different words, to be said twice."""

    lensd: Lensd
    texts: list[list[str]]
    seed: int


@dataclass(frozen=True)
class Halves:
    """A random text as two prompts of a job: its first half, and all of it."""

    first: str | Json
    both: str | Json


def draw(sequences: int, words: int, seed: int) -> list[list[str]]:
    """Seeded lists of different words."""
    generator = np.random.default_rng(seed)
    vocabulary = np.arange(FIRST_WORD, LAST_WORD + 1)
    return [[f"t{word}" for word in generator.permutation(vocabulary)[:words]] for _ in range(sequences)]


def scores(study: Study, model: str, length: int) -> tuple[dict[str, Array], list[list[int]]]:
    """Every head's scores as [layer, head], and the random sequences that they were read on."""
    drawn = {"sequences": 16, "length": length, "seed": study.seed}
    result = study.lensd.run({"kind": "attention", "model": model, "random_tokens": drawn})
    tables = {kind: study.lensd.array(result["random_scores"][kind]) for kind in KINDS}
    return tables, result["random_sequences"]


def patterns(study: Study, heads: Sequence[Head], words: int = 12) -> Json:
    """Where these heads look on one short text, said twice: [head, query, key]."""
    text = study.texts[0][:words] * 2
    asked = [{"layer": layer, "head": head} for layer, head in heads]
    job = {"kind": "attention", "model": SMALL, "prompts": [" ".join(text)], "patterns": asked, "scores": False}
    (prompt,) = study.lensd.run(job)["prompts"]
    return {
        "heads": list(heads),
        "tokens": prompt["tokens"]["strings"],
        "patterns": study.lensd.array(prompt["patterns"]).tolist(),
    }


def zeroed(study: Study, model: str, texts: Sequence[Halves], heads: Sequence[Head]) -> tuple[Json, Json]:
    """The losses of the whole model, and with these heads' outputs set to zero everywhere."""
    job = {
        "kind": "intervention",
        "model": model,
        "examples": [{"prompt": prompt} for text in texts for prompt in (text.first, text.both)],
        "metric": {"type": "cross_entropy"},
        "interventions": [
            {"site": "z", "layer": layer, "head": head, "operation": "set", "value": 0} for layer, head in heads
        ],
    }
    examples = study.lensd.run(job)["examples"]
    return losses(examples, "unpatched") | {"heads": []}, losses(examples, "patched") | {"heads": list(heads)}


def losses(examples: Sequence[Json], run: str) -> Json:
    """Nats a token in the first and the second half, and the in-context gain: their difference, its mean over texts.

    What a token costs does not depend on the tokens after it. So the second half's loss is the whole text's sum, less
    the sum of the first half read alone.
    """
    first, second = [], []
    for half_read, all_read in zip(examples[::2], examples[1::2], strict=True):
        half, whole = (len(read["tokens"]["ids"]) - 1 for read in (half_read, all_read))
        half_loss, whole_loss = (read["metric"][run] for read in (half_read, all_read))
        first.append(half_loss)
        second.append((whole * whole_loss - half * half_loss) / (whole - half))
    gains = np.array(first) - np.array(second)
    return {
        "first_half": float(np.mean(first)),
        "second_half": float(np.mean(second)),
        "gain": float(gains.mean()),
        "standard_error": float(gains.std(ddof=1) / len(gains) ** 0.5),
    }


def curve(study: Study, texts: Sequence[Halves], heads: Sequence[Head]) -> list[Json]:
    """The whole model, then with the first head zeroed, with the first two, and so on."""
    steps = [zeroed(study, SMALL, texts, heads[: count + 1]) for count in range(len(heads))]
    return [steps[0][0], *(patched for _, patched in steps)]


def ranked(score: Array, layer: int) -> list[Head]:
    """A layer's heads, highest score first."""
    return [(layer, int(head)) for head in np.argsort(-score[layer])]


def highest(score: Array, count: int) -> list[Head]:
    """The heads of the highest scores in all layers."""
    layers, heads = np.unravel_index(np.argsort(-score, axis=None)[:count], score.shape)
    return [(int(layer), int(head)) for layer, head in zip(layers, heads, strict=True)]


def small_model(study: Study) -> Json:
    """All three questions, asked of the two-layer model."""
    tables, _ = scores(study, SMALL, length=48)
    tellers, inducers = ranked(tables["previous_token"], 0), ranked(tables["induction"], 1)
    texts = [Halves(" ".join(words), " ".join(words * 2)) for words in study.texts]
    return {
        "scores": {kind: table.tolist() for kind, table in tables.items()},
        "patterns": patterns(study, [tellers[0], inducers[0]]),
        "curves": {
            TELLERS: curve(study, texts, tellers),
            OTHERS: curve(study, texts, tellers[::-1]),
            INDUCERS: curve(study, texts, inducers),
            WEAKEST: curve(study, texts, inducers[::-1]),
        },
        "composition": composition(study.lensd, study.texts, tellers),
    }


def large_model(study: Study) -> Json:
    """SmolLM2's heads of the highest induction scores, and its gain without heads that do or do not belong to them.

    Previous-token heads are as many, of the highest scores below the first induction head. The gain on texts that do
    not repeat, each half followed by the next text's, is what a model gains without any induction.
    """
    tables, sequences = scores(study, LARGE, length=25)
    induction, previous = tables["induction"], tables["previous_token"]
    best = highest(induction, LISTED)
    found = [head for head in best if induction[head] > INDUCTION_SCORE]
    tellers = highest(previous[: min(layer for layer, _ in found)], len(found))
    halves = [tokens[: len(tokens) // 2] for tokens in sequences]
    repeated = [Halves(as_prompt(half), as_prompt(half * 2)) for half in halves]
    unlike = [
        Halves(as_prompt(half), as_prompt(half + other))
        for half, other in zip(halves, halves[1:] + halves[:1], strict=True)
    ]
    others = {
        "others beside the induction heads": bystanders(induction, found),
        "previous-token heads": tellers,
        "others beside the previous-token heads": bystanders(previous, tellers),
    }
    whole, without = zeroed(study, LARGE, repeated, found)
    rest = {name: zeroed(study, LARGE, repeated, heads)[1] for name, heads in others.items()}
    fresh, fresh_without = zeroed(study, LARGE, unlike, found)
    return {
        "scores": {kind: table.tolist() for kind, table in tables.items()},
        "best": [{"head": head, **{kind: float(tables[kind][head]) for kind in KINDS}} for head in best],
        "zeroed": {"none": whole, "induction heads": without, **rest},
        "not_repeated": {"none": fresh, "induction heads": fresh_without},
    }


def bystanders(score: Array, heads: Sequence[Head]) -> list[Head]:
    """As many other heads of the same layers, those of the lowest scores."""
    lowest = {layer: ranked(score, layer)[::-1] for layer, _ in heads}
    return [lowest[layer].pop(0) for layer, _ in heads]


def as_prompt(tokens: list[int]) -> Json:
    """Token ids as they are: SmolLM2's texts begin with no BOS."""
    return {"type": "tokens", "tokens": tokens}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=32, help="texts of the two-layer model")
    parser.add_argument("--words", type=int, default=48, help="words of each, before they are repeated: 8 to 63")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with connect() as lensd:
        study = Study(lensd, draw(asked.sequences, asked.words, asked.seed), asked.seed)
        found: Json = {**vars(asked), SMALL: small_model(study), LARGE: large_model(study)}
    write_report(found, DOCS)


if __name__ == "__main__":
    main()
