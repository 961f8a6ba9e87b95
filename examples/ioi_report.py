"""What examples/ioi.py found, as a file of figures, plots, and the tables of docs/ioi.md."""

from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

from examples.client import Array, Json
from examples.page import rounded, write_figures, write_tables

SCRIPT = "examples/ioi.py"

LOOKS = {
    "name mover": ("logits", "END→IO"),
    "negative name mover": ("logits", "END→IO"),
    "other direct": ("logits", "END→S2"),
    "S-inhibition": ("name movers' q", "END→S2"),
    "duplicate token": ("S-inhibition k, v", "S2→S1"),
    "induction": ("S-inhibition k, v", "S2→S1+1"),
    "previous token": ("induction k", "S1+1→S1"),
}
"""For each class of heads the step that finds it, and the look that is shown."""

PANELS = 4
"""Classes in one row of the picture."""

SCORES = {"duplicate token": "duplicate_token", "induction": "induction", "previous token": "previous_token"}
"""The score that a class should have on repeated random tokens; for all others, how many names the head copies."""


def write_report(found: Json, docs: Path) -> None:
    """docs/ioi.json, docs/ioi-heads.png, docs/ioi-paths.png, docs/ioi-attention.png, and the tables of docs/ioi.md."""
    mpl.use("Agg")
    found = rounded(found)
    write_figures(found, docs / "ioi.json")
    layers, heads = np.shape(found["direct"]["heads"])
    by_step = {name: _heatmap(step, layers, heads) for name, step in found["steps"].items()}
    direct = np.array(found["direct"]["heads"]) / found["behaviour"]["clean"]["mean"]
    first = {"direct logit attribution": direct, "path patching → logits": by_step["logits"]}
    _draw_heatmaps(first, docs / "ioi-heads.png")
    rest = {f"path patching → {name}": values for name, values in by_step.items() if name != "logits"}
    if rest:
        _draw_heatmaps(rest, docs / "ioi-paths.png")
    _draw_attention(found, docs / "ioi-attention.png")
    write_tables([*_behaviour_table(found), "", *_class_table(found)], docs / "ioi.md", SCRIPT)


def _heatmap(step: Json, layers: int, heads: int) -> Array:
    """A step's effects as [layer, head]; heads that come after all receivers stay 0."""
    values = np.zeros((layers, heads))
    for sender, effect in zip(step["senders"], step["effects"], strict=True):
        if sender.startswith("a"):
            layer, _, head = sender.removeprefix("a").partition(".h")
            values[int(layer), int(head)] = effect
    return values


def _draw_heatmaps(panels: dict[str, Array], path: Path) -> None:
    figure, axes = plt.subplots(1, len(panels), figsize=(3.6 * len(panels), 7.5), layout="constrained", squeeze=False)
    for axis, (title, values) in zip(axes[0], panels.items(), strict=True):
        limit = 100 * max(float(np.abs(values).max()), 1e-3)
        image = axis.imshow(100 * values, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
        axis.set(title=title, xlabel="head", ylabel="layer")
        figure.colorbar(image, ax=axis, label="% of the logit difference", shrink=0.6)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_attention(found: Json, path: Path) -> None:
    """Where the heads of each class look, one panel a class."""
    classes = {name: heads for name, heads in found["classes"].items() if heads}
    rows, most = max(1, -(-len(classes) // PANELS)), max(map(len, classes.values()), default=1)
    figure, axes = plt.subplots(
        rows, PANELS, figsize=(3 * PANELS, 3.4 * rows), layout="constrained", squeeze=False, sharex=True
    )
    for axis in axes.flat[len(classes) :]:
        axis.axis("off")
    for axis, (name, heads) in zip(axes.flat, classes.items(), strict=False):
        query = LOOKS[name][1].partition("→")[0]
        looks = [look for look in found["attention"][heads[0]] if look.startswith(f"{query}→")]
        for offset, look in enumerate(looks):
            weights = [found["attention"][head][look] for head in heads]
            axis.barh(np.arange(len(heads)) + 0.25 * offset, weights, height=0.25, label=look)
        axis.set_yticks(np.arange(len(heads)), [_name(head) for head in heads])
        axis.set(title=name, xlabel="mean attention", xlim=(0, 1), ylim=(most, -0.5))
        axis.legend(fontsize=7, loc="best")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _behaviour_table(found: Json) -> Iterator[str]:
    yield "| prompts | IO preferred | mean logit difference | ± |"
    yield "|---|---|---|---|"
    for run, what in (("clean", "clean"), ("s2_flip", "S2 flipped to the IO"), ("abc", "ABC: three other names")):
        row = found["behaviour"][run]
        yield f"| {what} | {row['accuracy']:.0%} | {row['mean']:+.2f} | {row['standard_error']:.2f} |"


def _class_table(found: Json) -> Iterator[str]:
    yield "| class | head | path | effect, % of the logit difference | writes to IO, S, another name | looks | score |"
    yield "|---|---|---|---|---|---|---|"
    for name, (step, look) in LOOKS.items():
        for head in found["classes"].get(name, []):
            layer, index = (int(part) for part in head.removeprefix("a").split(".h"))
            made = found["steps"][step]
            at = made["senders"].index(head)
            effect = f"{100 * made['effects'][at]:+.1f} ± {100 * made['errors'][at]:.1f}"
            direct = ", ".join(f"{logits[layer][index]:+.2f}" for logits in found["direct"]["logits"].values())
            weight = f"{look} {found['attention'][head][look]:.2f}"
            score = SCORES.get(name, "copying")
            own = f"{score.replace('_', ' ')} {found['scores'][score][layer][index]:.2f}"
            yield f"| {name} | {_name(head)} | → {step} | {effect} | {direct} | {weight} | {own} |"
        if not found["classes"].get(name):
            yield f"| {name} | none | | | | | |"


def _name(head: str) -> str:
    return head.removeprefix("a").replace(".h", ".")
