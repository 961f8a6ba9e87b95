"""EAP-IG over all edges of SmolLM2-135M: 8 IOI pairs, 5 steps, in forward passes of one pair and in memory.

    python -m benchmarks.edges [--threads 2] [--repeats 5]

Jobs and plain forward passes of transformers take turns in one process; each figure is a median. A pair's forward pass
is one batch of its clean and its corrupted prompt. Memory is what the process held at most during the first job beyond
what it held before.
"""

import argparse
import json
import os
import statistics
import time
from typing import Any

import torch
from pydantic import TypeAdapter

from benchmarks.attribution import ioi_pairs
from benchmarks.engine import MODEL
from benchmarks.laboratory import Laboratory
from benchmarks.report import circumstances, table, write_section
from benchmarks.scaling import PeakMemory
from services.catalogue.resolve import Limits, resolve
from services.contracts.attribution import AttributionResult
from services.contracts.edge_attribution_patching import EdgeAttributionOutcome
from services.contracts.inputs import TokenizedPair
from services.contracts.job import JobSpec
from services.methods.context import MethodContext
from services.methods.registry import run_method

SPEC: TypeAdapter[JobSpec] = TypeAdapter(JobSpec)
FORWARDS = 20


def body(variant: str) -> dict[str, Any]:
    method = {"type": "edge_attribution_patching", "variant": variant, "steps": 5, "scores": True}
    return {"kind": "attribution", "model": MODEL, "method": method, "pairs": ioi_pairs()}


class Bench:
    def __init__(self, laboratory: Laboratory) -> None:
        self.model, self.catalogue, self.engine = laboratory.model, laboratory.catalogue, laboratory.engine
        self._laboratory = laboratory

    def job(self, variant: str) -> tuple[float, EdgeAttributionOutcome]:
        """Seconds from a read job to its result, with nothing known beforehand, and the result."""
        spec = SPEC.validate_json(json.dumps(body(variant)))
        inputs = resolve(spec, self.catalogue, Limits()).inputs
        ticket = self._laboratory.ticket()
        started = time.perf_counter()
        context = MethodContext(self.model, self.engine, ticket, inputs, self.catalogue.tokenizer(MODEL))
        result = run_method(spec, context)
        seconds = time.perf_counter() - started
        assert isinstance(result, AttributionResult)
        assert isinstance(result.attribution, EdgeAttributionOutcome)
        return seconds, result.attribution

    @torch.no_grad()
    def forward(self) -> float:
        """Seconds of one pair's plain forward pass."""
        spec = SPEC.validate_json(json.dumps(body("eap")))
        pair: TokenizedPair = resolve(spec, self.catalogue, Limits()).inputs.pairs[0]
        tokens = torch.tensor([pair.clean.ids, pair.corrupted.ids])
        seconds = []
        for _ in range(FORWARDS):
            started = time.perf_counter()
            self.model.bridge.original_model(tokens, use_cache=False)
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds)


def measured(bench: Bench, variant: str, repeats: int) -> tuple[tuple[str, ...], EdgeAttributionOutcome]:
    """One line of the table, and the last result."""
    bench.forward()
    with PeakMemory() as memory:
        _, outcome = bench.job(variant)
    jobs, forwards = [], []
    for _ in range(repeats):
        forwards.append(bench.forward())
        jobs.append(bench.job(variant)[0])
    job, forward = statistics.median(jobs), statistics.median(forwards)
    pairs = len(outcome.pairs)
    line = (
        f"`{variant}`",
        f"{job:.2f} s",
        f"{job / pairs:.2f} s",
        f"{1_000 * forward:.0f} ms",
        f"{job / pairs / forward:.1f}",
        f"{memory.above / 1e9:.2f} GB",
    )
    return line, outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    bench = Bench(Laboratory(MODEL, given.threads))
    before = os.getloadavg()[0]
    with bench.engine:
        bench.engine.warm_up(bench.model)
        lines = [measured(bench, variant, given.repeats) for variant in ("eap_ig_inputs", "eap")]
    command = f"python -m benchmarks.edges --threads {given.threads} --repeats {given.repeats}"
    where = circumstances(command, given.threads, (before, os.getloadavg()[0]))
    outcome = lines[0][1]
    told = (
        f"{len(outcome.pairs)} IOI pairs of 14 tokens, 5 steps, all {outcome.edge_counts.edges:,} edges "
        f"({len(outcome.writers)} writers, {len(outcome.readers)} readers). "
        "Bars for `eap_ig_inputs`: under 20 forward passes a pair, under 1.5 GB above the model."
    )
    head = (
        "variant",
        "job",
        "a pair",
        "a pair's plain forward pass",
        "forward passes a pair",
        "memory above the model",
    )
    write_section("Edge attribution", f"{told}\n\n{table(head, [line for line, _ in lines])}\n\n{where}")


if __name__ == "__main__":
    main()
