"""How a sweep's cost grows with the prompt and with the model, beside the arithmetic floor, and the memory it takes.

    python -m benchmarks.scaling [--threads 2] [--repeats 3]

The sweep patches `resid_pre` at every layer and position of prompts that differ from their first token on, so that no
cell is free. The floor is the floating-point operations of the branched sweep (a patch at layer l and position p
changes layers l.. and positions p..) divided by the rate at which this machine multiplies large matrices in that run.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import psutil
import torch
from matplotlib import pyplot

from benchmarks.report import circumstances, table, write_section
from services.catalogue.catalogue import model_folder, open_catalogue
from services.contracts.model import ModelFacts
from services.contracts.site import SiteName
from services.engine.engine import Engine, EngineLimits
from services.engine.readout import TokenLogits
from services.engine.row import FromRun, Intervention, Row, Site
from services.engine.ticket import JobTicket
from services.models.load import WEIGHTS, LoadedModel, load_model

MODEL = "smollm2-135m"
LENGTHS = (8, 14, 24, 40, 64)
LAYERS = (4, 8, 15, 30)
USUAL_LENGTH, USUAL_LAYERS = 14, 30
PICTURE = Path(__file__).resolve().parents[1] / "docs" / "sweep-cost.png"


@dataclass(frozen=True)
class Point:
    """One sweep: its size, seconds measured, and seconds at the floor."""

    layers: int
    length: int
    seconds: float
    floor: float


def matmul_rate() -> float:
    """Floating-point operations per second of large float32 matrix products; the median of several."""
    size = 1_536
    left, right = torch.randn(size, size), torch.randn(size, size)
    rates = []
    for _ in range(8):
        started = time.perf_counter()
        left @ right
        rates.append(2 * size**3 / (time.perf_counter() - started))
    return statistics.median(rates[1:])


def sweep_flops(facts: ModelFacts, length: int) -> float:
    """Operations of the branched sweep: weights of the blocks, scores and mixtures of the attention."""
    attention = facts.d_model * facts.d_head * (2 * facts.heads + 2 * facts.kv_heads)
    per_position = 2 * (attention + 3 * facts.d_model * facts.d_mlp)
    depth = sum(facts.layers - layer for layer in range(facts.layers))
    positions = [position for start in range(length) for position in range(start, length)]
    keys = sum(position + 1 for position in positions)
    return depth * (len(positions) * per_position + 4 * facts.heads * facts.d_head * keys)


def rows(layers: int, length: int) -> list[Row]:
    draw = random.Random(length)  # noqa: S311 - a sample, no secret
    clean, corrupted = (tuple(draw.randrange(1_000, 40_000) for _ in range(length)) for _ in range(2))
    return [
        Row(
            corrupted,
            (Intervention(Site(SiteName.RESID_PRE, layer), (position,), "set", FromRun(clean)),),
            readout=TokenLogits(length - 1, (5, 6)),
        )
        for layer in range(layers)
        for position in range(length)
    ]


@contextmanager
def truncated(folder: Path, facts: ModelFacts, layers: int) -> Iterator[LoadedModel]:
    """The model's first layers, as a model of its own."""
    with tempfile.TemporaryDirectory() as name:
        short = Path(name)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {"num_hidden_layers": layers}
        (short / "config.json").write_text(json.dumps(config), encoding="utf-8")
        (short / WEIGHTS).symlink_to(folder / WEIGHTS)
        cut = facts.model_copy(update={"layers": layers})
        yield load_model(short, cut, device=torch.device("cpu"), dtype=torch.float32)


def measured(engine: Engine, model: LoadedModel, length: int, owner: str) -> float:
    """Seconds of a sweep with nothing known beforehand."""
    started = time.perf_counter()
    engine.run(model, rows(model.facts.layers, length), job=JobTicket("bench", owner=owner))
    return time.perf_counter() - started


def point(engine: Engine, model: LoadedModel, length: int, repeats: int) -> Point:
    """The sweep with the median ratio to its own floor: the rate is measured right before and after each sweep, with as
    many threads, so that the machine's drift falls on both."""
    flops = sweep_flops(model.facts, length)
    rates, points = [matmul_rate()], []
    for repeat in range(repeats):
        seconds = measured(engine, model, length, f"{length} {repeat}")
        rates.append(matmul_rate())
        points.append(Point(model.facts.layers, length, seconds, flops / statistics.mean(rates[-2:])))
    return sorted(points, key=lambda point: point.seconds / point.floor)[repeats // 2]


class PeakMemory:
    """The most resident memory of this process while watched, in bytes above where it began."""

    def __enter__(self) -> "PeakMemory":
        self._process = psutil.Process()
        self._began = self._process.memory_info().rss
        self._peak = self._began
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    @property
    def above(self) -> int:
        return self._peak - self._began

    def _watch(self) -> None:
        while not self._ending.wait(0.01):
            self._peak = max(self._peak, self._process.memory_info().rss)


def draw(by_length: list[Point], by_layers: list[Point]) -> None:
    mpl.use("Agg")
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, points, x, label in (
        (axes[0], by_length, [p.length for p in by_length], "prompt length (tokens), 30 layers"),
        (axes[1], by_layers, [p.layers for p in by_layers], "layers, 14 tokens"),
    ):
        axis.loglog(x, [p.seconds for p in points], "o-", label="measured")
        axis.loglog(x, [p.floor for p in points], "s--", color="grey", label="arithmetic floor")
        axis.set_xticks(x, [str(value) for value in x])
        axis.minorticks_off()
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("seconds per layers × positions sweep")
    axes[0].legend()
    figure.savefig(PICTURE, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    home = Path(os.environ.get("LENSD_HOME", ".lensd")).resolve()
    facts, folder = open_catalogue(home).model(MODEL), model_folder(home, MODEL)
    before = os.getloadavg()[0]
    by_length: list[Point] = []
    by_layers: list[Point] = []
    for layers in LAYERS:
        # An engine each: to it, one file of weights is one model.
        with truncated(folder, facts, layers) as model, Engine(EngineLimits(threads=given.threads)) as engine:
            engine.warm_up(model)
            by_layers.append(point(engine, model, USUAL_LENGTH, given.repeats))
            if layers == USUAL_LAYERS:
                with PeakMemory() as memory:
                    by_length = [point(engine, model, length, given.repeats) for length in LENGTHS]
    draw(by_length, by_layers)
    usual = by_layers[-1]
    lines = [
        (str(p.layers), str(p.length), f"{p.seconds:.2f} s", f"{p.floor:.2f} s", f"{p.seconds / p.floor:.1f}×")
        for p in (*by_layers, *by_length)
    ]
    where = circumstances(
        f"python -m benchmarks.scaling --threads {given.threads} --repeats {given.repeats}",
        given.threads,
        (before, os.getloadavg()[0]),
    )
    body = table(("layers", "tokens", "sweep", "arithmetic floor", "ratio"), lines)
    figures = (
        f"At 30 layers × 14 tokens the sweep takes {usual.seconds / usual.floor:.1f}× the floor (bar 2×). The largest "
        f"sweeps (up to 64 tokens) took {memory.above / 2**20:.0f} MiB above the loaded model, base runs included "
        "(bar 1,536 MiB)."
    )
    picture = "![cost of a sweep](../docs/sweep-cost.png)"
    write_section("Cost of a sweep", f"{body}\n\n{figures}\n\n{picture}\n\n{where}")


if __name__ == "__main__":
    main()
