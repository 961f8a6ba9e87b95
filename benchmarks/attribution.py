"""Attribution patching against TransformerLens' own function: SmolLM2-135M, same pairs, same weights, same threads.

    python -m benchmarks.attribution [--threads 2] [--repeats 5]

Both sides estimate every head and every MLP at every position of eight IOI pairs, in turn; times are medians. Ours has
cold base runs every time. The whole job also patches twenty nodes of every pair exactly, which the other side does not.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from pydantic import TypeAdapter
from transformer_lens.tools.analysis.attribution_patching import Node, attribution_patch

from benchmarks.engine import LATER, MODEL, NAMES
from benchmarks.laboratory import Laboratory
from benchmarks.report import circumstances, table, write_section
from benchmarks.scaling import PeakMemory
from services.catalogue.resolve import Limits, resolve
from services.contracts.attribution import AttributionSpec
from services.contracts.attribution_patching import AttributionPatching
from services.contracts.inputs import TokenizedPair
from services.methods import attribution_patching
from services.methods.context import MethodContext
from services.models.load import LoadedModel

PROMPT = "When {0} and {1} went to {2}, {3} gave the bag to"
LONG = 64
SPEC: TypeAdapter[AttributionSpec] = TypeAdapter(AttributionSpec)
EVERY_NODE = ("q", "k", "v", "z", "attn_out", "mlp_out", "resid_pre")

Effects = dict[str, Float64[np.ndarray, "layer ..."]]
"""`z` by layer, head and position, `mlp_out` by layer and position: means over the pairs."""


class Bench:
    def __init__(self, laboratory: Laboratory) -> None:
        self.model, self.catalogue, self.engine = laboratory.model, laboratory.catalogue, laboratory.engine
        self._laboratory = laboratory

    def context(self, spec: AttributionSpec) -> MethodContext:
        """A job of a new owner: nothing is known beforehand."""
        return MethodContext(
            model=self.model,
            engine=self.engine,
            ticket=self._laboratory.ticket(),
            inputs=resolve(spec, self.catalogue, Limits()).inputs,
            tokenizer=self.catalogue.tokenizer(MODEL),
        )

    def ours(self, spec: AttributionSpec) -> tuple[float, Effects]:
        """Seconds for the estimates, and what they are."""
        assert isinstance(spec.method, AttributionPatching)
        context = self.context(spec)
        started = time.perf_counter()
        found = attribution_patching.estimated(spec.method, spec, context)
        seconds = time.perf_counter() - started
        return seconds, {
            grid.site.value: effects.mean(axis=0) for grid, effects in zip(found.grids, found.effects, strict=True)
        }

    def whole_job(self, spec: AttributionSpec) -> float:
        assert isinstance(spec.method, AttributionPatching)
        context = self.context(spec)
        started = time.perf_counter()
        attribution_patching.run(spec.method, spec, context)
        return time.perf_counter() - started

    def theirs(self, pairs: Sequence[TokenizedPair]) -> tuple[float, Effects]:
        """The same by TransformerLens, a pair at a time as it does by itself: each pair has answers of its own."""
        with _unfrozen(self.model):
            started = time.perf_counter()
            scores = [self._scores(pair) for pair in pairs]
            seconds = time.perf_counter() - started
        return seconds, self._effects(scores, len(pairs[0].clean.ids))

    def _scores(self, pair: TokenizedPair) -> dict[Node, float]:
        answer, foil = pair.answer, pair.foil
        clean, corrupted = (torch.tensor([run.ids]) for run in (pair.clean, pair.corrupted))
        result = attribution_patch(
            self.model.bridge, clean, corrupted, lambda logits: logits[0, -1, answer] - logits[0, -1, foil]
        )
        scores: dict[Node, float] = result.node_scores
        return scores

    def _effects(self, scores: Sequence[dict[Node, float]], length: int) -> Effects:
        facts = self.model.facts
        heads = np.zeros((facts.layers, facts.heads, length))
        mlps = np.zeros((facts.layers, length))
        for of_pair in scores:
            for node, score in of_pair.items():
                if node.kind == "attn_head_out":
                    heads[node.layer, node.head, node.position] += score / len(scores)
                elif node.kind == "mlp_out":
                    mlps[node.layer, node.position] += score / len(scores)
        return {"z": heads, "mlp_out": mlps}


@contextmanager
def _unfrozen(model: LoadedModel) -> Iterator[None]:
    """Their function raises on weights that take no gradient."""
    model.bridge.requires_grad_(True)
    try:
        yield
    finally:
        model.bridge.requires_grad_(False)


def spec_of(pairs: Sequence[dict[str, Any]], **method: Any) -> AttributionSpec:
    body = {
        "kind": "attribution",
        "model": MODEL,
        "method": {"type": "attribution_patching", **method},
        "pairs": list(pairs),
    }
    return SPEC.validate_json(json.dumps(body))


def ioi_pairs() -> list[dict[str, Any]]:
    return [
        {
            "clean": PROMPT.format(*names, place, names[0]),
            "corrupted": PROMPT.format(*names, place, names[1]),
            "answer": f" {names[1]}",
            "foil": f" {names[0]}",
        }
        for names in NAMES
        for place in LATER
    ]


def long_pair(bench: Bench) -> dict[str, Any]:
    """The last 64 tokens of a longer text, with one name changed in the middle."""
    read = bench.catalogue.tokenizer(MODEL).read_text
    text = " ".join([PROMPT.format("John", "Mary", "the shops", "John") + " Mary."] * 6)
    clean = list(read(text, bos=False).ids[-LONG:])
    (mary,), (john,) = (read(name, bos=False).ids for name in (" Mary", " John"))
    middle = next(index for index in range(LONG // 2, LONG) if clean[index] == john)
    corrupted = [*clean[:middle], mary, *clean[middle + 1 :]]
    runs = {"clean": clean, "corrupted": corrupted}
    return {name: {"type": "tokens", "tokens": ids} for name, ids in runs.items()} | {"answer": mary, "foil": john}


def measured(bench: Bench, repeats: int) -> str:
    with PeakMemory() as memory:
        for method in ({}, {"nodes": EVERY_NODE}, {"nodes": EVERY_NODE, "variant": "atp_star"}):
            bench.whole_job(spec_of([long_pair(bench)], **method))
    spec = spec_of(ioi_pairs())
    pairs = bench.context(spec).inputs.pairs
    bench.ours(spec)
    bench.theirs(pairs[:1])
    runs = [(bench.ours(spec), bench.theirs(pairs)) for _ in range(repeats)]
    ours = statistics.median(seconds for (seconds, _), _ in runs)
    theirs = statistics.median(seconds for _, (seconds, _) in runs)
    (_, found), (_, expected) = runs[0]
    largest = max(np.abs(effects).max() for effects in expected.values())
    difference = max(np.abs(found[site] - expected[site]).max() for site in expected) / largest
    length = len(pairs[0].clean.ids)
    line = (
        f"AtP of 30 × 9 heads and 30 MLPs × {length} positions, {len(pairs)} IOI pairs, against `attribution_patch`",
        f"{ours:.2f} s",
        f"{theirs:.2f} s",
        f"{theirs / ours:.1f}×",
        "≥ 3.5×",
        f"{difference:.1e}",
    )
    head = ("estimates", "lensd", "TransformerLens", "faster", "bar", "max difference (of the largest)")
    checked = statistics.median(bench.whole_job(spec) for _ in range(repeats))
    return (
        f"{table(head, [line])}\n\n"
        f"The whole job, which also patches 20 nodes of each pair exactly: {checked:.2f} s.\n\n"
        f"A pair of {LONG} tokens took up to {memory.above / 1e9:.2f} GB above the loaded model (bar 4 GB): AtP of "
        "heads and MLPs, AtP and AtP* of all seven kinds of nodes, one after another, checks included."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    bench = Bench(Laboratory(MODEL, given.threads))
    before = os.getloadavg()[0]
    with bench.engine:
        bench.engine.warm_up(bench.model)
        body = measured(bench, given.repeats)
    load = (before, os.getloadavg()[0])
    command = f"python -m benchmarks.attribution --threads {given.threads} --repeats {given.repeats}"
    write_section("Attribution patching", f"{body}\n\n{circumstances(command, given.threads, load)}")


if __name__ == "__main__":
    main()
