"""What examples/induction.py found, as a file of figures, plots, and the tables of docs/induction.md."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import PercentFormatter

from examples.client import Array, Json
from examples.page import rounded, write_figures, write_tables

SCRIPT = "examples/induction.py"

SMALL, LARGE = "induction-2l", "smollm2-135m"

TELLERS, OTHERS = "layer 0, highest previous-token score first", "layer 0, lowest first"
INDUCERS, WEAKEST = "layer 1, highest induction score first", "layer 1, lowest first"
"""In which order heads are zeroed."""

CHOSEN = (
    (TELLERS, 2, "layer 0's two strongest\nprevious-token heads"),
    (TELLERS, 4, "its four strongest"),
    (OTHERS, 4, "its other four"),
    (INDUCERS, 2, "layer 1's two strongest\ninduction heads"),
    (INDUCERS, 8, "all of layer 1's heads"),
)
"""Points of the curves that the bars show: the curve, how many heads are zeroed, and their name."""


def write_report(found: Json, docs: Path) -> None:
    """docs/induction.json, docs/induction-*.png, and the tables of docs/induction.md."""
    mpl.use("Agg")
    found = rounded(found)
    write_figures(found, docs / "induction.json")
    draw_scores(found, docs / "induction-scores.png")
    draw_patterns(found[SMALL]["patterns"], docs / "induction-patterns.png")
    draw_gains(found, docs / "induction-ablation.png")
    draw_curves(found[SMALL]["curves"], docs / "induction-curves.png")
    draw_paths(found[SMALL]["composition"], docs / "induction-paths.png")
    write_tables(tables(found), docs / "induction.md", SCRIPT)


def save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_scores(found: Json, path: Path) -> None:
    """Previous-token and induction scores of every head of both models, as layer × head."""
    figure, axes = plt.subplots(
        2, 2, figsize=(9, 9.2), layout="constrained", height_ratios=(1, 4.5), gridspec_kw={"hspace": 0.06}
    )
    for row, model in zip(axes, (SMALL, LARGE), strict=True):
        for axis, kind in zip(row, ("previous_token", "induction"), strict=True):
            values = np.array(found[model]["scores"][kind])
            image = axis.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
            axis.set(title=f"{model}: {kind.replace('_', '-')} score", xlabel="head", ylabel="layer")
            axis.set_xticks(range(values.shape[1]))
            axis.set_yticks(range(0, values.shape[0], 1 if len(values) < 10 else 3))
            write_cells(axis, values, above=0.0 if model == SMALL else 0.3, dark=0.6)
    figure.colorbar(image, ax=axes, label="mean attention", shrink=0.4, pad=0.02)
    save(figure, path)


def write_cells(
    axis: Any, values: Array, *, above: float, dark: float, form: Callable[[float], str] = "{:.2f}".format
) -> None:
    """Numbers into a heatmap's cells whose size is at least `above`; white where it is over `dark`."""
    for (row, column), value in np.ndenumerate(values):
        if abs(value) >= above:
            color = "white" if abs(value) > dark else "black"
            axis.text(column, row, form(value), ha="center", va="center", fontsize=7, color=color)


def draw_patterns(read: Json, path: Path) -> None:
    """Where the strongest head of each kind looks, from each word to each word."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 5), layout="constrained")
    kinds = ("previous-token head", "induction head")
    for axis, head, pattern, kind in zip(axes, read["heads"], read["patterns"], kinds, strict=True):
        image = axis.imshow(pattern, cmap="Blues", vmin=0, vmax=1)
        axis.set(title=f"{name(head)}: {kind}", xlabel="looks at", ylabel="from")
        axis.set_xticks(range(len(read["tokens"])), read["tokens"], rotation=90, fontsize=7)
        axis.set_yticks(range(len(read["tokens"])), read["tokens"], fontsize=7)
    figure.colorbar(image, ax=axes, label="attention", shrink=0.7)
    save(figure, path)


def draw_gains(found: Json, path: Path) -> None:
    """The in-context gain of both models, whole and with chosen heads set to zero."""
    curves = found[SMALL]["curves"]
    small = {"whole model": curves[TELLERS][0]}
    small |= {label: curves[curve][count] for curve, count, label in CHOSEN}
    large = {"whole model" if heads == "none" else heads: row for heads, row in found[LARGE]["zeroed"].items()}
    fresh = found[LARGE]["not_repeated"]
    large |= {"whole model, no repetition": fresh["none"], "induction heads, no repetition": fresh["induction heads"]}
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.4), layout="constrained")
    for axis, (model, rows) in zip(axes, {SMALL: small, LARGE: large}.items(), strict=True):
        gains, errors = ([row[key] for row in rows.values()] for key in ("gain", "standard_error"))
        bars = axis.barh(
            range(len(rows)),
            gains,
            xerr=errors,
            color=["#2166ac" if row["heads"] else "#888888" for row in rows.values()],
        )
        axis.bar_label(bars, fmt="%.2f", padding=6, fontsize=8)
        labels = [f"{label}\n{heads_of(row)}" if row["heads"] else label for label, row in rows.items()]
        axis.set_yticks(range(len(rows)), labels, fontsize=8)
        axis.invert_yaxis()
        axis.axvline(0, color="black", linewidth=0.8)
        axis.margins(x=0.15)
        axis.set(title=model, xlabel="in-context gain with heads zeroed, nats a token")
    save(figure, path)


def heads_of(row: Json) -> str:
    """Which heads are zeroed, when they are few enough to name."""
    return ", ".join(name(head) for head in row["heads"]) if len(row["heads"]) < 8 else ""


def draw_curves(curves: Json, path: Path) -> None:
    """Losses of both halves as more and more heads of one layer are zeroed."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained", sharey=True)
    for axis, layer in zip(axes, ("layer 0", "layer 1"), strict=True):
        chosen = {order: rows for order, rows in curves.items() if order.startswith(layer)}
        for color, (order, rows) in zip(("#2166ac", "#b2182b"), chosen.items(), strict=True):
            label = order.partition(", ")[2]
            axis.plot([row["second_half"] for row in rows], "o-", color=color, label=f"second half, {label}")
            axis.plot(
                [row["first_half"] for row in rows], "o:", color=color, markersize=3, label=f"first half, {label}"
            )
        axis.set(title=f"{SMALL}, {layer}", xlabel="heads zeroed", ylabel="loss, nats a token", ylim=(0, 7.5))
        axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False)
    save(figure, path)


def draw_paths(found: Json, path: Path) -> None:
    """Path patching from layer 0 to layer 1, as shares of the way from the clean to the corrupted text."""
    together = {key.removesuffix(" of layer 1"): row["normalized"] for key, row in found["by_input"].items()}
    alone = {shown(key.removesuffix("<k>")): row["normalized"] for key, row in found["by_key"].items()}
    by_position = np.transpose(found["by_position"]["normalized"])
    placed = dict(zip(found["by_position"]["positions"], by_position, strict=True))
    panels = {
        "→ all heads of layer 1 together": (together, "read as"),
        "→ the keys of one head": (alone, "head"),
        "→ all keys, sender patched at one position": (placed, "position"),
    }
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.4), layout="constrained", width_ratios=(4, 8, 4.5))
    for axis, (title, (columns, what)) in zip(axes, panels.items(), strict=True):
        values = np.transpose(list(columns.values()))
        image = axis.imshow(values, cmap="RdBu_r", vmin=-0.4, vmax=0.4, aspect="auto")
        axis.set(title=title, xlabel=what, ylabel="sender")
        axis.set_xticks(range(len(columns)), columns)
        axis.set_yticks(range(len(found["senders"])), [shown(sender) for sender in found["senders"]])
        write_cells(axis, values, above=0.0, dark=0.28, form=percent)
    figure.colorbar(image, ax=axes, label="share of the way to the corrupted text's answer", format=PercentFormatter(1))
    save(figure, path)


def shown(node: str) -> str:
    """0.3 for a0.h3; other names as they are."""
    return node.removeprefix("a").replace(".h", ".")


def name(head: Sequence[int]) -> str:
    return f"{head[0]}.{head[1]}"


def percent(share: float) -> str:
    """Whole per cents, with no sign before a zero."""
    return f"{round(100 * share)}%"


def tables(found: Json) -> Iterator[str]:
    """The tables of the page."""
    yield from losses_table(found)
    yield ""
    yield from paths_table(found[SMALL]["composition"])
    yield ""
    yield from together_table(found[SMALL]["composition"]["together"])
    yield ""
    yield from heads_table(found[LARGE]["best"])


def losses_table(found: Json) -> Iterator[str]:
    """Both models' losses, whole and without heads."""
    yield "| model | zeroed | first half | second half | gain | ± |"
    yield "|---|---|---|---|---|---|"
    curves = found[SMALL]["curves"]
    rows = [(SMALL, "none", curves[TELLERS][0])]
    rows += [(SMALL, label.replace("\n", " "), curves[curve][count]) for curve, count, label in CHOSEN]
    rows += [(LARGE, label, row) for label, row in found[LARGE]["zeroed"].items()]
    rows += [(f"{LARGE}, no repetition", label, row) for label, row in found[LARGE]["not_repeated"].items()]
    for model, label, row in rows:
        heads = f": {heads_of(row)}" if heads_of(row) else ""
        figures = (
            f"{row['first_half']:.2f} | {row['second_half']:.2f} | {row['gain']:.2f} | {row['standard_error']:.2f}"
        )
        yield f"| {model} | {label}{heads} | {figures} |"


def paths_table(found: Json) -> Iterator[str]:
    """What each sender alone tells each kind of reader."""
    yield f"| sender alone | {' | '.join(found['by_input'])} |"
    yield f"|---|{'---|' * len(found['by_input'])}"
    columns = np.array([row["normalized"] for row in found["by_input"].values()])
    for sender, shares in zip(found["senders"], columns.T, strict=True):
        yield f"| {shown(sender)} | {' | '.join(percent(share) for share in shares)} |"


def together_table(found: Sequence[Json]) -> Iterator[str]:
    """What heads of layer 0 tell the keys of layer 1 when they are patched at once."""
    yield "| senders at once | k of layer 1 |"
    yield "|---|---|"
    for row in found:
        yield f"| {', '.join(name(head) for head in row['heads'])} | {percent(row['normalized'])} |"


def heads_table(found: Sequence[Json]) -> Iterator[str]:
    """SmolLM2's heads of the highest induction scores, with all their scores."""
    kinds = [kind for kind in found[0] if kind != "head"]
    yield f"| head of {LARGE} | {' | '.join(kind.replace('_', '-') for kind in kinds)} |"
    yield f"|---|{'---|' * len(kinds)}"
    for row in found:
        yield f"| {name(row['head'])} | {' | '.join(f'{row[kind]:.2f}' for kind in kinds)} |"
