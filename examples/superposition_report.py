"""What examples/superposition.py found, as a file of figures, a plot, and the tables of docs/superposition.md."""

from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

from examples.client import Json
from examples.page import rounded, write_figures, write_tables

SCRIPT = "examples/superposition.py"


def write_report(found: Json, docs: Path) -> None:
    """docs/superposition.json, docs/superposition.png, and the tables of docs/superposition.md."""
    mpl.use("Agg")
    found = rounded(found)
    write_figures(found, docs / "superposition.json")
    draw(found, docs / "superposition.png")
    write_tables(tables(found), docs / "superposition.md", SCRIPT)


def tables(found: Json) -> Iterator[str]:
    """One row for each SAE."""
    yield "| seed | L1 | represented | recovered | least, mean cosine | explained variance |"
    yield "|---|---|---|---|---|---|"
    for run in found["runs"]:
        cosines = run["cosines"]
        yield (
            f"| {run['seed']} | {run['l1']} | {run['represented']} of {len(run['norms'])} | {run['recovered']:.1%} | "
            f"{min(cosines):.3f}, {np.mean(cosines):.3f} | {run['explained_variance']:.3f} |"
        )


def draw(found: Json, path: Path) -> None:
    """Of the first seed: W's Gram matrix, the norms of its columns, and their cosines with each SAE's nearest row."""
    figure, (gram, norms, cosines) = plt.subplots(1, 3, figsize=(14, 4.4), layout="constrained")
    image = gram.imshow(found["gram"], cmap="RdBu_r", vmin=-1.4, vmax=1.4)
    gram.set(title="WᵀW", xlabel="feature", ylabel="feature")
    figure.colorbar(image, ax=gram, shrink=0.8)
    first = [run for run in found["runs"] if run["seed"] == found["runs"][0]["seed"]]
    norms.bar(range(len(first[0]["norms"])), first[0]["norms"], color="#2166ac")
    norms.axhline(0.5, color="black", linewidth=0.8, label="represented above")
    norms.set(title="squared norms of W's columns", xlabel="feature", ylabel="‖W_i‖²")
    norms.legend(fontsize=8)
    for run in first:
        cosines.hist(run["cosines"], bins=np.linspace(0, 1, 41), histtype="step", label=f"L1 {run['l1']}")
    cosines.axvline(0.95, color="black", linewidth=0.8)
    cosines.set(title="nearest decoder row", xlabel="cosine", ylabel="represented features")
    cosines.legend(fontsize=8, loc="upper left")
    figure.savefig(path, dpi=110)
    plt.close(figure)
