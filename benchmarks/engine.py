"""The engine against TransformerLens' own patching functions: SmolLM2-135M, same prompts, same weights, same threads.

    python -m benchmarks.engine [--threads 2] [--repeats 5]

Engine times are medians over repeats, each with cold base runs. TransformerLens' cells all cost the same, so where its
full sweep takes minutes its time is taken from a seeded sample of them.
"""

import argparse
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformer_lens import patching

from benchmarks.laboratory import Laboratory
from benchmarks.report import circumstances, table, write_section
from services.contracts.site import SiteName
from services.engine.readout import TokenLogits
from services.engine.row import FromRun, Intervention, Row, Site

MODEL = "smollm2-135m"
IOI = "{first} John and Mary went to the shops, {subject} gave the bag to"
NAMES = (("John", "Mary"), ("Tom", "Anna"), ("James", "Sarah"), ("Mark", "Lisa"))
LATER = ("the shops", "the park")
SAMPLED_CELLS = 60

Tokens = tuple[int, ...]
Cell = tuple[int, ...]


@dataclass(frozen=True)
class Pair:
    """Clean and corrupted tokens, and the two answers whose logit difference is the metric."""

    clean: Tokens
    corrupted: Tokens
    answers: tuple[int, int]


@dataclass(frozen=True)
class Sweep:
    """One sweep: its cells, a cell as the engine is asked for it, and TransformerLens' setter for the same cell."""

    title: str
    site: SiteName
    cells: tuple[Cell, ...]
    columns: tuple[str, ...]
    setter: Callable[..., Any]
    bar: str

    def row(self, pair: Pair, cell: Cell) -> Row:
        named = dict(zip(self.columns, cell, strict=True))
        positions = (named["pos"],) if "pos" in named else None
        site = Site(self.site, named["layer"], named.get("head"))
        patch = Intervention(site, positions, "set", FromRun(pair.clean))
        return Row(pair.corrupted, (patch,), readout=TokenLogits(len(pair.corrupted) - 1, pair.answers))


class Bench:
    def __init__(self, laboratory: Laboratory, repeats: int) -> None:
        self.model, self.engine = laboratory.model, laboratory.engine
        self.tokenizer = laboratory.catalogue.tokenizer(MODEL)
        self.repeats = repeats
        self._laboratory = laboratory

    def pair(self, clean: str, corrupted: str, answer: str = " Mary", foil: str = " John") -> Pair:
        read = [self.tokenizer.read_text(text, bos=False).ids for text in (clean, corrupted)]
        (answer_id,), (foil_id,) = (self.tokenizer.read_text(text, bos=False).ids for text in (answer, foil))
        return Pair(read[0], read[1], (answer_id, foil_id))

    def rows(self, rows: Sequence[Row]) -> tuple[float, Tensor]:
        """Seconds for `rows` with nothing known beforehand, and the metric of each."""
        ticket = self._laboratory.ticket()
        started = time.perf_counter()
        outcomes = self.engine.run(self.model, rows, job=ticket)
        seconds = time.perf_counter() - started
        return seconds, torch.stack([outcome.values()[0] - outcome.values()[1] for outcome in outcomes])

    def ours(self, sweep: Sweep, pair: Pair) -> tuple[float, Tensor]:
        rows = [sweep.row(pair, cell) for cell in sweep.cells]
        runs = [self.rows(rows) for _ in range(self.repeats)]
        return statistics.median(seconds for seconds, _ in runs), runs[0][1]

    @torch.no_grad()
    def theirs(self, sweep: Sweep, pair: Pair, cells: Sequence[Cell]) -> tuple[float, Tensor]:
        """Seconds per cell, and the metric of each cell."""
        bridge = self.model.bridge
        _, cache = bridge.run_with_cache(torch.tensor([pair.clean]))
        started = time.perf_counter()
        found = patching.generic_activation_patch(
            bridge,
            torch.tensor([pair.corrupted]),
            cache,
            lambda logits: logits[0, -1, pair.answers[0]] - logits[0, -1, pair.answers[1]],
            sweep.setter,
            sweep.site.value,
            index_df=pd.DataFrame(cells, columns=sweep.columns),
        )
        return (time.perf_counter() - started) / len(cells), found


def sweeps(length: int) -> tuple[Sweep, ...]:
    layers, heads, positions = range(30), range(9), range(length)
    return (
        Sweep(
            f"`resid_pre`, 30 layers × {length} positions, against `get_act_patch_resid_pre`",
            SiteName.RESID_PRE,
            tuple(product(layers, positions)),
            ("layer", "pos"),
            patching.layer_pos_patch_setter,
            "≥ 12×",
        ),
        Sweep(
            "`z`, 30 layers × 9 heads, all positions, against `get_act_patch_attn_head_z_all_pos`",
            SiteName.Z,
            tuple(product(layers, heads)),
            ("layer", "head"),
            patching.layer_head_vector_patch_setter,
            "≥ 8×",
        ),
        Sweep(
            f"`z`, 30 layers × {length} positions × 9 heads, against `get_act_patch_attn_head_z_by_pos`",
            SiteName.Z,
            tuple(product(layers, positions, heads)),
            ("layer", "pos", "head"),
            patching.layer_pos_head_vector_patch_setter,
            "≥ 9×",
        ),
    )


def compared(bench: Bench, sweep: Sweep, pair: Pair, *, sampled: bool) -> tuple[str, ...]:
    """One line of the table."""
    draw = random.Random(0)  # noqa: S311 - a sample, no secret
    cells = draw.sample(sweep.cells, SAMPLED_CELLS) if sampled else list(sweep.cells)
    bench.theirs(sweep, pair, cells[:3])
    per_cell, theirs = bench.theirs(sweep, pair, cells)
    seconds, ours = bench.ours(sweep, pair)
    where = [sweep.cells.index(cell) for cell in cells]
    difference = float((ours[where] - theirs).abs().max())
    total = per_cell * len(sweep.cells)
    note = f" ({len(cells)} cells sampled)" if sampled else ""
    return (
        sweep.title,
        f"{seconds:.2f} s",
        f"{total:.1f} s{note}",
        f"{total / seconds:.1f}×",
        sweep.bar,
        f"{difference:.1e}",
    )


def many_pairs(bench: Bench) -> str:
    """Eight pairs' `resid_pre` sweeps in one submission against one submission after another."""
    prompts = "When {0} and {1} went to {2}, {3} gave the bag to"
    texts = [
        (prompts.format(*names, place, names[0]), prompts.format(*names, place, names[1]))
        for names in NAMES
        for place in LATER
    ]
    pairs = [bench.pair(clean, corrupted) for clean, corrupted in texts]
    works = [[sweep.row(pair, cell) for sweep in sweeps(len(pair.clean))[:1] for cell in sweep.cells] for pair in pairs]
    together = statistics.median(bench.rows([row for rows in works for row in rows])[0] for _ in range(bench.repeats))
    apart = statistics.median(sum(bench.rows(rows)[0] for rows in works) for _ in range(bench.repeats))
    return (
        f"8 IOI pairs in one job: {together:.2f} s; one job after another: {apart:.2f} s; "
        f"{apart / together:.2f}× (bar 1.2×)."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    bench = Bench(Laboratory(MODEL, given.threads), given.repeats)
    before = os.getloadavg()[0]
    with bench.engine:
        bench.engine.warm_up(bench.model)
        body = measured(bench)
    after = os.getloadavg()[0]
    where = circumstances(
        f"python -m benchmarks.engine --threads {given.threads} --repeats {given.repeats}",
        given.threads,
        (before, after),
    )
    write_section("Engine", f"{body}\n\n{where}")


def measured(bench: Bench) -> str:
    usual = bench.pair(IOI.format(first="When", subject="John"), IOI.format(first="When", subject="Mary"))
    unlike = bench.pair(IOI.format(first="Then", subject="John"), IOI.format(first="When", subject="Mary"))
    resid_pre, heads, heads_by_position = sweeps(len(usual.clean))
    lines = [
        compared(bench, resid_pre, usual, sampled=False),
        compared(bench, heads, usual, sampled=False),
        compared(bench, heads_by_position, usual, sampled=True),
    ]
    for sweep in (resid_pre, heads, heads_by_position):
        title, *figures = compared(bench, sweep, unlike, sampled=True)
        lines.append((f"{title}; prompts that differ from their first token on", *figures))
    head = ("sweep", "lensd", "TransformerLens", "faster", "bar", "max difference (logits)")
    return f"{table(head, lines)}\n\n{many_pairs(bench)}"


if __name__ == "__main__":
    main()
