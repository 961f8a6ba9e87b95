"""How true the methods are on a real model, at length: `python -m benchmarks.ground_truth [--threads 2] [--pairs 4]`.

`make test` holds every method against float64 on tiny models. Here they meet SmolLM2-135M and its IOI task:

1. whole activation patching sweeps against TransformerLens' own functions;
2. AtP and AtP* against activation patching of every node, and EAP's sums over edges against patching of their writers;
3. the gap of integrated gradients as its steps grow, and of direct logit attribution over many prompts.
"""

import argparse
import os
import random
from typing import Any

import numpy as np
import torch
from transformer_lens import patching as transformer_lens_patching

from benchmarks.laboratory import Laboratory
from benchmarks.report import GROUND_TRUTH, circumstances, table, write_section
from services.methods.attribution_check import rank_correlation

MODEL = "smollm2-135m"
NAMES = ("Mary", "John", "Anna", "Tom", "Paul", "Lisa")
PLACES = ("shops", "park", "school", "station")

Body = dict[str, Any]
Line = tuple[str, ...]


def ioi_pairs(number: int, seed: int = 0) -> list[Body]:
    """Seeded pairs of equal length; the corrupted prompt has the other name give."""
    draw = random.Random(seed)  # noqa: S311 - a sample, no secret
    pairs = []
    for _ in range(number):
        (giver, other), place = draw.sample(NAMES, 2), draw.choice(PLACES)
        text = f"When {giver} and {other} went to the {place}, {{}} gave the bag to"
        pairs.append(
            {
                "clean": text.format(giver),
                "corrupted": text.format(other),
                "answer": f" {other}",
                "foil": f" {giver}",
            }
        )
    return pairs


def array(estimate: Any) -> Any:
    """The values of one pair, or the mean over many."""
    return (estimate.mean if estimate.encoding == "statistic" else estimate).array()


def agreement(found: Any, exact: Any) -> Line:
    """Rank correlations of magnitudes, over the nodes that have an effect at all and the 20 largest; largest error."""
    found, exact = found.ravel(), exact.ravel()
    top = np.argsort(-np.abs(exact))[:20]
    correlations = [
        rank_correlation(np.abs(found[among]), np.abs(exact[among])) for among in (np.flatnonzero(exact), top)
    ]
    error = f"{np.abs(found - exact).max():.2f} of {np.abs(exact).max():.2f}"
    return str(np.count_nonzero(exact)), *(f"{correlation or 0.0:.3f}" for correlation in correlations), error


def patching(laboratory: Laboratory, pairs: list[Body], **method: Any) -> Any:
    return laboratory.run({"kind": "patching", "method": {"type": "activation_patching", **method}, "pairs": pairs})


def attribution(laboratory: Laboratory, method: Body, **inputs: Any) -> Any:
    return laboratory.run({"kind": "attribution", "method": method, **inputs})


@torch.no_grad()
def sweeps(laboratory: Laboratory) -> list[Line]:
    """Every cell of two sweeps of one pair, beside TransformerLens' own."""
    (pair,) = ioi_pairs(1)
    result = patching(laboratory, [pair], site="resid_pre")
    tokens = result.pairs[0].tokens
    bridge = laboratory.model.bridge
    tokenizer = laboratory.catalogue.tokenizer(MODEL)
    answer, foil = (tokenizer.read_text(pair[name], bos=False).ids[0] for name in ("answer", "foil"))
    corrupted = torch.tensor([tokens.corrupted.ids])
    _, cache = bridge.run_with_cache(torch.tensor([tokens.clean.ids]))

    def metric(logits: torch.Tensor) -> torch.Tensor:
        return logits[0, -1, answer] - logits[0, -1, foil]

    base = result.pairs[0].baselines.corrupted
    lines: list[Line] = []
    for name, ours, function in (
        ("resid_pre", result, "get_act_patch_resid_pre"),
        ("z", patching(laboratory, [pair], site="z"), "get_act_patch_attn_head_out_all_pos"),
    ):
        theirs = getattr(transformer_lens_patching, function)(bridge, corrupted, cache, metric).numpy() - base
        found = array(ours.effects)
        lines.append(
            (
                f"`{name}` sweep",
                f"`{function}`",
                f"{found.size} cells",
                f"{np.abs(found - theirs).max():.1e} logits",
            )
        )
    return lines


def estimates(laboratory: Laboratory, number: int) -> list[Line]:
    """How well the gradient estimates rank what exact patching finds."""
    pairs = ioi_pairs(number)
    lines: list[Line] = []
    for variant, site in (("atp", "z"), ("atp", "mlp_out"), ("atp", "q"), ("atp_star", "q"), ("atp_star", "k")):
        method = {"type": "attribution_patching", "variant": variant, "nodes": [site], "mode": "noising"}
        outcome = attribution(laboratory, method, pairs=pairs).attribution
        (node,) = outcome.nodes
        shape = {} if node.positions is None else {"positions": list(node.positions)}
        exact = array(patching(laboratory, pairs, site=site, mode="noising", **shape).effects)
        found = array(node.effects)
        lines.append((f"`{variant}`, `{site}` by position", *agreement(found, exact)))
    return lines + edges(laboratory, pairs)


def edges(laboratory: Laboratory, pairs: list[Body]) -> list[Line]:
    """Sums over each head's outgoing edges, beside patching of the head's whole output."""
    exact = -array(patching(laboratory, pairs, site="z", mode="noising").effects)
    lines: list[Line] = []
    for variant in ("eap", "eap_ig_inputs", "eap_ig_activations"):
        method = {"type": "edge_attribution_patching", "variant": variant, "steps": 5, "scores": True}
        outcome = attribution(laboratory, method, pairs=pairs).attribution
        sums = dict(zip(outcome.writers, np.nansum(array(outcome.scores), axis=1), strict=True))
        found = np.array([[sums[f"a{layer}.h{head}"] for head in range(9)] for layer in range(30)])
        lines.append((f"`{variant}`, edges summed by head", *agreement(found, exact)))
    return lines


def completeness(laboratory: Laboratory) -> list[Line]:
    """The gap of integrated gradients, in percent of the change that it should add up to."""
    (pair,) = ioi_pairs(1)
    example = {"prompt": pair["clean"], "answer": pair["answer"], "foil": pair["foil"]}
    lines: list[Line] = []
    for steps in (10, 20, 50, 100, 300):
        gaps = []
        for baseline in ("corrupted", "mean_embedding", "zero"):
            inputs = {"pairs": [pair]} if baseline == "corrupted" else {"examples": [example]}
            method = {"type": "integrated_gradients", "baseline": baseline, "steps": steps}
            (found,) = attribution(laboratory, method, **inputs).attribution.examples
            gaps.append(f"{100 * abs(found.completeness_gap / (found.metric - found.baseline_metric)):.2f} %")
        lines.append((str(steps), *gaps))
    return lines


def direct_terms(laboratory: Laboratory, number: int = 100) -> str:
    """The worst gap of direct logit attribution over many prompts."""
    examples = [{"prompt": pair["clean"], "answer": pair["answer"], "foil": pair["foil"]} for pair in ioi_pairs(number)]
    outcome = attribution(laboratory, {"type": "direct_logit_attribution"}, examples=examples).attribution
    worst = max(example.gap for example in outcome.examples)
    mean = np.mean([abs(example.metric) for example in outcome.examples])
    return (
        f"Direct logit attribution over {number} prompts: the terms miss the metric by at most {worst:.1e} logits "
        f"(mean |metric| {mean:.2f})."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=4)
    given = parser.parse_args()
    before = os.getloadavg()[0]
    laboratory = Laboratory(MODEL, given.threads)
    with laboratory.engine:
        body = "\n\n".join(
            (
                table(("ours", "against", "compared", "largest difference"), sweeps(laboratory)),
                table(
                    ("estimate", "nodes patched exactly", "rank correlation", "of the 20 largest", "largest error"),
                    estimates(laboratory, given.pairs),
                ),
                "Gap of integrated gradients by steps and baseline, in percent of the change in the metric:",
                table(("steps", "corrupted prompt", "mean embedding", "zero"), completeness(laboratory)),
                direct_terms(laboratory),
            )
        )
    where = circumstances(
        f"python -m benchmarks.ground_truth --threads {given.threads} --pairs {given.pairs}",
        given.threads,
        (before, os.getloadavg()[0]),
    )
    write_section("SmolLM2-135M", f"{body}\n\n{where}", GROUND_TRUTH)


if __name__ == "__main__":
    main()
