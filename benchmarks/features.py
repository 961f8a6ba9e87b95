"""Feature lookup against SAELens on TransformerLens' bridge, and one feature against all: SmolLM2-135M, layer 15.

    python -m benchmarks.features [--threads 1] [--repeats 5]

64 prompts of 64 seeded tokens, which the other sides run prompt by prompt, taking the ten
strongest features of each token:

1. SAELens' own bridge, as its documentation shows: the SAE attached, `run_with_cache_with_saes`, the whole model;
2. a notebook by somebody who knows better: stops at the SAE's layer, encodes and decodes by hand.

The sides run in turn; medians, and the same numbers asserted. Encoding and reporting are a job's seconds without those
of the engine, by the result's own account.

One feature against all twice: of prompts that nobody has asked about, where both jobs run the model up to the SAE's
layer; and of prompts that the same client has looked at before, whose activations the engine still has.
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
from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge
from torch import Tensor

from benchmarks.laboratory import Laboratory
from benchmarks.report import circumstances, table, write_section
from services.catalogue.catalogue import model_folder, sae_folder
from services.contracts.features import FeaturesResult
from services.contracts.tensor import InlineTensor
from services.models.load import load_model

MODEL, SAE_ID = "smollm2-135m", "smollm2-135m-l15-resid-post"
EARLY_SAE_ID = "smollm2-135m-l7-resid-post"
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
        self.attached = _with_saes(laboratory)
        draw = random.Random(0)  # noqa: S311 - a sample, no secret
        vocabulary = laboratory.model.facts.vocabulary
        self.prompts = [[draw.randrange(vocabulary) for _ in range(TOKENS)] for _ in range(PROMPTS)]

    def warm_up(self) -> None:
        """Both sides once, on a few of the prompts."""
        every, self.prompts = self.prompts, self.prompts[:2]
        self.ours(Side())
        self.saelens(Side())
        self.notebook(Side())
        self.prompts = every

    def ours(self, side: Side, owner: str | None = None, **changes: Any) -> FeaturesResult:
        """One whole job, from its body on; of an `owner` whose earlier jobs may have left activations behind."""
        prompts = [{"type": "tokens", "tokens": tokens} for tokens in self.prompts]
        body = {"kind": "features", "sae": SAE_ID, "prompts": prompts, "top_k": TOP_K, "promoted_logits": 0, **changes}
        started = time.perf_counter()
        result = self.laboratory.run(body, owner)
        side.seconds.append(time.perf_counter() - started)
        side.outside.append(side.seconds[-1] - result.usage.engine_seconds)
        assert isinstance(result, FeaturesResult)
        return result

    @torch.no_grad()
    def saelens(self, side: Side) -> list[Tensor]:
        """Every prompt's features by SAELens' bridge, [token, feature]."""
        bridge, found = self.attached, []
        started = time.perf_counter()
        for tokens in self.prompts:
            _, cache = bridge.run_with_cache_with_saes(torch.tensor([tokens]), saes=[self.theirs])
            features = cache[bridge.get_sae_hook_name(self.theirs)][0]
            features.topk(TOP_K, dim=1)
            found.append(features)
        side.seconds.append(time.perf_counter() - started)
        return found

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


def _with_saes(laboratory: Laboratory) -> Any:
    """A second copy of the model as SAELens' bridge, made as its own `boot_transformers` does."""
    folder = model_folder(laboratory.home, MODEL)
    loaded = load_model(folder, laboratory.model.facts, device=torch.device("cpu"), dtype=torch.float32)
    bridge: Any = loaded.bridge
    bridge.__class__ = SAETransformerBridge
    bridge._acts_to_saes, bridge._transcoder_output_hooks = {}, {}  # noqa: SLF001 - what its constructor would set
    return bridge


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
    """Our lookup against SAELens' bridge and against the notebook."""
    ours, bridge, notebook = Side(), Side(), Side()
    for _ in range(repeats):
        result = bench.ours(ours)
        attached = bench.saelens(bridge)
        expected = bench.notebook(notebook)
    lines = [
        ("SAELens' bridge with the SAE attached", bridge, "≥ 3×", attached),
        ("a notebook that stops at the SAE's layer", notebook, "", expected),
    ]
    rows = [
        (
            name,
            f"{ours.median():.2f} s",
            f"{side.median():.2f} s",
            f"{side.median() / ours.median():.2f}×",
            bar,
            f"{difference(result, found):.1e}",
        )
        for name, side, bar, found in lines
    ]
    head = ("prompt by prompt", "lensd", "it", "faster", "bar", "max difference (of the largest)")
    share = 1 - ours.median_outside() / ours.median()
    text = (
        f"{PROMPTS} prompts × {TOKENS} tokens, {TOP_K} features per token, our reconstruction included.\n\n"
        f"{table(head, rows)}\n\nOf our {ours.median():.2f} s, the model's 16 layers take {share:.0%}."
    )
    return text, expected


def one_against_all(bench: Bench, repeats: int, expected: list[Tensor]) -> str:
    """Jobs for the one feature that fires most often, against jobs for all; for the early SAE some feature."""
    busiest = int(sum((features > 0).sum(dim=0) for features in expected).argmax())  # type: ignore[union-attr]
    lines, share, worst = [], 0.0, 0.0
    for sae_id, feature in ((SAE_ID, busiest), (EARLY_SAE_ID, 0)):
        sides = {name: (Side(), Side()) for name in ("cold", "warm")}
        for repeat in range(repeats):
            for name, (one, every) in sides.items():
                owners = [f"{sae_id} {repeat} {name} {number}" for number in range(2)]
                for owner in owners if name == "warm" else ():
                    bench.ours(Side(), owner, sae=sae_id, features=[feature])
                result = bench.ours(one, owners[0], sae=sae_id, features=[feature])
                bench.ours(every, owners[1], sae=sae_id)
                if sae_id == SAE_ID:
                    worst = max(worst, one_difference(result, feature, expected))
        (cold, cold_all), (warm, warm_all) = sides["cold"], sides["warm"]
        layer = bench.laboratory.catalogue.sae(sae_id).layer
        lines += [
            _line(f"layer {layer}: prompts not seen before", cold.median(), cold_all.median(), ""),
            _line("its encoding and reporting alone", cold.median_outside(), cold_all.median_outside(), ""),
            _line(f"layer {layer}: prompts looked at before", warm.median(), warm_all.median(), "≥ 2×"),
        ]
        if sae_id == SAE_ID:
            share = 1 - cold_all.median_outside() / cold_all.median()
    return (
        f"{table(('whole job', 'one feature', 'all 4,096', 'faster', 'bar'), lines)}\n\n"
        f"On prompts not seen before both jobs run the model up to the SAE's layer, which is {share:.0%} of the job "
        f"for all at layer 15: encoding for nothing would make it {1 / share:.2f}× faster, and no more. One feature's "
        f"activations are the notebook's to {worst:.1e} of the largest, either way."
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
        bench.warm_up()
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
