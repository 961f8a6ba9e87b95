"""Feature lookup against SAELens on TransformerLens' bridge, and one feature against all: SmolLM2-135M, layer 15.

    python -m benchmarks.features [--threads 1] [--repeats 5]

64 prompts of 64 seeded tokens. The notebook runs prompt by prompt, stops at the SAE's layer, encodes, decodes and takes
the ten strongest features of each token. The sides run in turn; medians, and the same numbers asserted. Encoding and
reporting are a job's seconds without those of the engine, by the result's own account.
"""

import argparse
import os
import random
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from sae_lens import SAE
from torch import Tensor

from benchmarks.laboratory import Laboratory
from benchmarks.report import circumstances, table, write_section
from services.catalogue.catalogue import sae_folder
from services.contracts.features import FeaturesResult
from services.contracts.tensor import InlineTensor

MODEL, SAE_ID = "smollm2-135m", "smollm2-135m-l15-resid-post"
PROMPTS, TOKENS, TOP_K = 64, 64, 10
AGREEMENT = 1e-4
"""How far activations may be apart, in parts of the largest."""


@dataclass
class Side:
    """Seconds of one side's runs: whole jobs, and their part outside the engine."""

    seconds: list[float] = field(default_factory=list)
    outside: list[float] = field(default_factory=list)

    def median(self) -> float:
        return statistics.median(self.seconds)

    def median_outside(self) -> float:
        return statistics.median(self.outside)


class Bench:
    def __init__(self, laboratory: Laboratory) -> None:
        self.laboratory = laboratory
        self.theirs = SAE.load_from_disk(str(sae_folder(laboratory.home, SAE_ID)), device="cpu")
        draw = random.Random(0)  # noqa: S311 - a sample, no secret
        vocabulary = laboratory.model.facts.vocabulary
        self.prompts = [[draw.randrange(vocabulary) for _ in range(TOKENS)] for _ in range(PROMPTS)]

    def ours(self, side: Side, **changes: Any) -> FeaturesResult:
        """One whole job, from its body on."""
        prompts = [{"type": "tokens", "tokens": tokens} for tokens in self.prompts]
        started = time.perf_counter()
        result = self.laboratory.run({"kind": "features", "sae": SAE_ID, "prompts": prompts, "top_k": TOP_K, **changes})
        side.seconds.append(time.perf_counter() - started)
        side.outside.append(side.seconds[-1] - result.usage.engine_seconds)
        assert isinstance(result, FeaturesResult)
        return result

    @torch.no_grad()
    def notebook(self, side: Side) -> list[Tensor]:
        """Every prompt's features, [token, feature]."""
        hook, found = "blocks.15.hook_resid_post", []
        started = time.perf_counter()
        for tokens in self.prompts:
            _, cache = self.laboratory.model.bridge.run_with_cache(
                torch.tensor([tokens]), names_filter=hook, stop_at_layer=16
            )
            features = self.theirs.encode(cache[hook][0])
            self.theirs.decode(features)
            features.topk(TOP_K, dim=1)
            found.append(features)
        side.seconds.append(time.perf_counter() - started)
        return found


def difference(result: FeaturesResult, expected: list[Tensor]) -> float:
    """How far any listed activation is from the notebook's, in parts of the largest; raises where they disagree."""
    listed = [
        (feature.activation, float(features[token.position, feature.index]))
        for prompt, features in zip(result.prompts, expected, strict=True)
        for token in prompt.per_token
        for feature in token.features
    ]
    worst = max(abs(ours - theirs) for ours, theirs in listed) / max(theirs for _, theirs in listed)
    if worst > AGREEMENT:
        raise RuntimeError(f"activations differ by {worst:.1e} of the largest")
    return worst


def one_difference(result: FeaturesResult, feature: int, expected: list[Tensor]) -> float:
    """The same of one feature's activations on every token that counts."""
    worst = 0.0
    for prompt, features in zip(result.prompts, expected, strict=True):
        assert isinstance(prompt.activations, InlineTensor)
        counted = [position for position in range(TOKENS) if position not in prompt.over_norm]
        off = torch.from_numpy(prompt.activations.array()[:, 0].copy()) - features[:, feature]
        worst = max(worst, float(off[counted].abs().max()))
    worst /= max(float(features.max()) for features in expected)
    if worst > AGREEMENT:
        raise RuntimeError(f"activations of feature {feature} differ by {worst:.1e} of the largest")
    return worst


def lookup(bench: Bench, repeats: int) -> tuple[str, list[Tensor]]:
    """Our lookup against the notebook's."""
    ours, theirs = Side(), Side()
    for _ in range(repeats + 1):
        result = bench.ours(ours, promoted_logits=0)
        expected = bench.notebook(theirs)
    del ours.seconds[0], ours.outside[0], theirs.seconds[0]
    line = (
        f"{PROMPTS} prompts × {TOKENS} tokens, {TOP_K} features per token, reconstruction included",
        f"{ours.median():.2f} s",
        f"{theirs.median():.2f} s",
        f"{theirs.median() / ours.median():.2f}×",
        "≥ 3×",
        f"{difference(result, expected):.1e}",
    )
    head = (
        "lookup",
        "lensd",
        "SAELens on the bridge, prompt by prompt",
        "faster",
        "bar",
        "max difference (of the largest)",
    )
    share = 1 - ours.median_outside() / ours.median()
    return f"{table(head, [line])}\n\nOf our {ours.median():.2f} s, the model's 16 layers take {share:.0%}.", expected


def one_against_all(bench: Bench, repeats: int, expected: list[Tensor]) -> str:
    """Jobs for the one feature that fires most often, against jobs for all."""
    feature = int(sum((features > 0).sum(dim=0) for features in expected).argmax())  # type: ignore[union-attr]
    lines, worst = [], 0.0
    for name, changes in (
        ("promoted tokens left out", {"promoted_logits": 0}),
        ("as a job comes by default, five promoted tokens", {}),
    ):
        one, every = Side(), Side()
        for _ in range(repeats + 1):
            result = bench.ours(one, features=[feature], **changes)
            bench.ours(every, **changes)
        for side in (one, every):
            del side.seconds[0], side.outside[0]
        worst = max(worst, one_difference(result, feature, expected))
        lines.append(_line(f"whole job, {name}", one.median(), every.median(), "≥ 2×"))
        lines.append(_line("its encoding and reporting", one.median_outside(), every.median_outside(), ""))
    return (
        f"{table(('job', 'one feature', 'all 4,096', 'faster', 'bar'), lines)}\n\n"
        f"One feature's activations are the notebook's to {worst:.1e} of the largest."
    )


def _line(name: str, one: float, every: float, bar: str) -> tuple[str, ...]:
    return name, f"{one:.2f} s", f"{every:.2f} s", f"{every / one:.2f}×", bar


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    laboratory = Laboratory(MODEL, given.threads)
    bench = Bench(laboratory)
    before = os.getloadavg()[0]
    with laboratory.engine:
        laboratory.engine.warm_up(laboratory.model)
        against_notebook, expected = lookup(bench, given.repeats)
        body = f"{against_notebook}\n\n{one_against_all(bench, given.repeats, expected)}"
    where = circumstances(
        f"python -m benchmarks.features --threads {given.threads} --repeats {given.repeats}",
        given.threads,
        (before, os.getloadavg()[0]),
    )
    write_section("Features", f"{body}\n\n{where}")


if __name__ == "__main__":
    main()
