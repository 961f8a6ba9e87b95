"""Indirect object identification in SmolLM2-135M, by jobs alone (Wang et al. 2022, arXiv:2211.00593).

    LENSD_KEY=... python -m examples.ioi [--pairs 100] [--path-pairs 40] [--seed 0]

Each step asks for what the step before it found, as the paper does:

1. behaviour: how often and by how much the indirect object (IO) is preferred to the subject (S);
2. direct logit attribution: what every head writes into the logit difference;
3. path patching of every head's output at END → logits: name movers, and negative ones;
4. path patching → the name movers' queries at END: S-inhibition heads;
5. path patching → the S-inhibition heads' keys and values at S2: duplicate-token and induction heads;
6. path patching → the induction heads' keys at S1+1: previous-token heads;
7. attention of all of these between the named positions; copying scores on names, and the other scores on repeated
   random tokens.

Path patching is noising with the ABC corruption. It writes docs/ioi.json, docs/ioi-*.png and the tables of docs/ioi.md.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from examples.client import Array, Json, Lensd, connect
from examples.ioi_prompts import Drawn, examples, pairs, sample, single_token_names
from examples.ioi_report import write_report

MODEL = "smollm2-135m"
DOCS = Path(__file__).resolve().parents[1] / "docs"

ERRORS = 3.0
SHARE = 0.01
"""A head has an effect when its mean is more than this many standard errors from zero, and more than this share of the
clean logit difference."""

LOOK = 0.1
"""A head looks at a position when its mean attention there is at least this, and more than at those it is held to."""

MOST_RECEIVERS = 6
"""At most so many heads of a class, those of the largest effect, are what the next step sends to."""


@dataclass(frozen=True)
class Step:
    """Effects of one step's senders on the logit difference, in shares of its clean mean; negative: patching hurts."""

    receivers: tuple[str, ...]
    position: str
    senders: tuple[str, ...]
    effects: tuple[float, ...]
    errors: tuple[float, ...]

    def effect(self, head: str) -> float:
        return self.effects[self.senders.index(head)]

    def heads(self) -> list[str]:
        """Heads with an effect, largest first."""
        strong = [
            (abs(effect), sender)
            for sender, effect, error in zip(self.senders, self.effects, self.errors, strict=True)
            if sender.startswith("a") and abs(effect) > max(SHARE, ERRORS * error)
        ]
        return [sender for _, sender in sorted(strong, reverse=True)]


@dataclass
class Study:
    """The server, the drawn prompts, and what has been found so far."""

    lensd: Lensd
    facts: Json
    drawn: Drawn
    path_drawn: Drawn
    clean: float = 0.0
    found: Json = field(default_factory=dict)

    def cut(self, text: str) -> list[str]:
        return self.lensd.tokens(MODEL, text)

    def run(self, kind: str, **fields: Any) -> Json:
        return self.lensd.run({"kind": kind, "model": MODEL, "metric": {"type": "logit_diff"}} | fields)


def behaviour(study: Study) -> Json:
    """Accuracy and mean logit difference, from the baselines of a patching job that sweeps one cell."""
    found: Json = {}
    for corruption in ("s2_flip", "abc"):
        method = {"type": "activation_patching", "site": "resid_pre", "layers": [0], "positions": ["S2"]}
        result = study.run("patching", method=method, pairs=pairs(study.drawn, corruption, study.cut))
        baselines = [pair["baselines"] for pair in result["pairs"]]
        for run in ("clean", "corrupted"):
            name = run if run == "clean" else corruption
            found[name] = preference(np.array([baseline[run] for baseline in baselines]))
    return found


def preference(differences: Array) -> Json:
    """logit(IO) − logit(S) over prompts: how often it is positive, its mean and standard error."""
    return {
        "accuracy": float((differences > 0).mean()),
        "mean": float(differences.mean()),
        "standard_error": float(differences.std(ddof=1) / len(differences) ** 0.5),
        "prompts": len(differences),
    }


def direct(study: Study) -> Json:
    """What every head and MLP writes straight into the logit difference, and heads into three names' own logits."""
    terms = written(study, examples(study.drawn), "logit_diff")
    answers = {
        "IO": [prompt.indirect_object for prompt, _ in study.drawn],
        "S": [prompt.subject for prompt, _ in study.drawn],
        "other": [others[0] for _, others in study.drawn],
    }
    names = {
        who: [
            {"prompt": prompt.clean, "answer": f" {name}"}
            for (prompt, _), name in zip(study.drawn, of_prompts, strict=True)
        ]
        for who, of_prompts in answers.items()
    }
    return {
        "heads": study.lensd.array(terms["heads"]).tolist(),
        "errors": study.lensd.standard_error(terms["heads"]).tolist(),
        "mlps": study.lensd.array(terms["mlps"]).tolist(),
        "embedding": float(study.lensd.array(terms["embedding"])),
        "logits": {
            name: study.lensd.array(written(study, of_name, "logit")["heads"]).tolist()
            for name, of_name in names.items()
        },
    }


def written(study: Study, asked: Sequence[Json], metric: str) -> Json:
    """The direct terms of a metric, means over examples."""
    method = {"type": "direct_logit_attribution"}
    result = study.run("attribution", method=method, examples=list(asked), metric={"type": metric})
    terms: Json = result["attribution"]["terms"]
    return terms


def paths(study: Study, receivers: Sequence[str], position: str) -> Step:
    """Path patching from every head and MLP to `receivers`, at one named position."""
    method: Json = {"type": "path_patching", "mode": "noising", "receivers": list(receivers), "positions": [position]}
    if tuple(receivers) != ("logits",):
        method["receiver_positions"] = [position]
    result = study.run("patching", method=method, pairs=pairs(study.path_drawn, "abc", study.cut))
    clean = float(np.mean([pair["baselines"]["clean"] for pair in result["pairs"]]))
    effects, errors = (
        read(result["effects"])[:, 0] / clean for read in (study.lensd.array, study.lensd.standard_error)
    )
    return Step(tuple(receivers), position, tuple(result["senders"]), tuple(effects.tolist()), tuple(errors.tolist()))


def attention(study: Study, heads: Sequence[str]) -> dict[str, Json]:
    """Mean attention of these heads between the named positions."""
    prompts = [example["prompt"] for example in examples(study.path_drawn)]
    named = [pair["positions"] for pair in pairs(study.path_drawn, "abc", study.cut)]
    asked = [dict(zip(("layer", "head"), place(head), strict=True)) for head in heads]
    result = study.lensd.run(
        {"kind": "attention", "model": MODEL, "prompts": prompts, "patterns": asked, "scores": False}
    )
    patterns = [study.lensd.array(prompt["patterns"]) for prompt in result["prompts"]]
    looks = [("END", "IO"), ("END", "S1"), ("END", "S2"), ("S2", "S1"), ("S2", "S1+1"), ("S1+1", "S1")]
    return {
        head: {
            f"{query}→{key}": float(
                np.mean([pattern[index, at[query], at[key]] for pattern, at in zip(patterns, named, strict=True)])
            )
            for query, key in looks
        }
        for index, head in enumerate(heads)
    }


def scores(study: Study, names: Sequence[str]) -> Json:
    """Every head's scores as [layer, head]: copying on a list of all names, the others on repeated random tokens."""
    prompt = "".join(f" {name}" for name in names)
    result = study.lensd.run(
        {"kind": "attention", "model": MODEL, "prompts": [prompt], "random_tokens": {"seed": 0}, "scores": True}
    )
    on_names = {"copying": result["scores"]["copying"]}
    on_random = {name: result["random_scores"][name] for name in ("previous_token", "duplicate_token", "induction")}
    return {name: study.lensd.array(tensor).tolist() for name, tensor in (on_names | on_random).items()}


def place(head: str) -> tuple[int, int]:
    """(layer, head) of "a9.h6"."""
    layer, _, index = head.removeprefix("a").partition(".h")
    return int(layer), int(index)


def inputs(study: Study, heads: Sequence[str], which: str) -> list[str]:
    """Receivers: the q of heads, or the k or v of the KV heads that they share."""
    group = 1 if which == "q" else study.facts["heads"] // study.facts["kv_heads"]
    places = [place(head) for head in heads[:MOST_RECEIVERS]]
    return list(dict.fromkeys(f"a{layer}.h{head // group}<{which}>" for layer, head in places))


def chain(study: Study) -> tuple[dict[str, Step], dict[str, list[str]], dict[str, Json]]:
    """The paper's four rounds of path patching; a class is by effect and by where its heads look."""
    steps: dict[str, Step] = {}
    looks: dict[str, Json] = {}
    classes: dict[str, list[str]] = {}

    def step(name: str, receivers: Sequence[str], position: str) -> list[str]:
        if not receivers:
            return []
        steps[name] = paths(study, receivers, position)
        heads = steps[name].heads()
        if unseen := [head for head in heads if head not in looks]:
            looks.update(attention(study, unseen))
        return heads

    direct_heads = step("logits", ["logits"], "END")
    at_io = looking(looks, direct_heads, "END→IO", "END→S1", "END→S2")
    classes["name mover"] = hurting(steps, "logits", at_io)
    classes["negative name mover"] = [head for head in at_io if head not in classes["name mover"]]
    classes["other direct"] = [head for head in direct_heads if head not in at_io]
    queries = step("name movers' q", inputs(study, classes["name mover"], "q"), "END")
    at_s2 = looking(looks, queries, "END→S2", "END→IO", "END→S1")
    classes["S-inhibition"] = hurting(steps, "name movers' q", at_s2)
    inhibition = [name for which in "kv" for name in inputs(study, classes["S-inhibition"], which)]
    values = hurting(steps, "S-inhibition k, v", step("S-inhibition k, v", inhibition, "S2"))
    classes["duplicate token"] = looking(looks, values, "S2→S1", "S2→S1+1")
    classes["induction"] = looking(looks, values, "S2→S1+1", "S2→S1")
    keys = step("induction k", inputs(study, classes["induction"], "k"), "S1+1")
    classes["previous token"] = looking(looks, hurting(steps, "induction k", keys), "S1+1→S1")
    return steps, classes, looks


def hurting(steps: dict[str, Step], name: str, heads: Sequence[str]) -> list[str]:
    """Those of a step's heads that carry some of the logit difference: patching them lowers it."""
    return [head for head in heads if steps[name].effect(head) < 0]


def looking(looks: dict[str, Json], heads: Sequence[str], target: str, *others: str) -> list[str]:
    """Heads that look at `target`, and more than at the others."""
    return [
        head
        for head in heads
        if looks[head][target] >= LOOK and all(looks[head][target] > looks[head][other] for other in others)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100, help="prompts of behaviour and direct attribution")
    parser.add_argument("--path-pairs", type=int, default=40, help="of them for path patching and attention")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with connect() as lensd:
        names = single_token_names(lambda text: lensd.tokens(MODEL, text))
        drawn = sample(names, asked.pairs, asked.seed)
        study = Study(lensd, lensd.model(MODEL), drawn, drawn[: asked.path_pairs])
        found: Json = {"model": MODEL, "names": len(names), **vars(asked)}
        found["behaviour"] = behaviour(study)
        found["direct"] = direct(study)
        steps, classes, looks = chain(study)
        found |= {"steps": {name: asdict(step) for name, step in steps.items()}, "classes": classes, "attention": looks}
        found["scores"] = scores(study, names)
        found["engine_seconds"] = round(lensd.seconds, 1)
    write_report(found, DOCS)


if __name__ == "__main__":
    main()
