"""The training activations, computed once and cached in float16 on disk; a run that was cut short goes on."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from services.saes.progress import how_far
from services.saes.recipe.corpus import Tokens
from services.saes.recipe.language_model import LowerModel
from services.saes.recipe.settings import Recipe


@dataclass(frozen=True)
class Activations:
    """`values` [token, d_model] float16 on disk, `kept` the indices within the norm threshold, `mean` over those."""

    values: NDArray[np.float16]
    kept: NDArray[np.int64]
    norm_threshold: float
    median_norm: float
    mean: NDArray[np.float32]


def cache_activations(recipe: Recipe, model: LowerModel, tokens: Tokens, work_dir: Path) -> None:
    """Runs the lower layers once over every row, in bfloat16 matmuls around a float32 residual stream."""
    rows, context = tokens.shape
    done_path = work_dir / "activations.json"
    done = json.loads(done_path.read_text())["rows"] if done_path.exists() else 0
    mode: Literal["r+", "w+"] = "r+" if done else "w+"
    files = {layer: _file(work_dir, layer, (rows, context, model.d_model), mode) for layer in model.layers}
    started, first = time.monotonic(), done
    while done < rows:
        batch = torch.from_numpy(tokens[done : done + recipe.forward_rows]).long()
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = model.activations(batch)
        for layer, values in files.items():
            values[done : done + len(batch)] = hidden[layer].to(torch.float16).numpy()
        done += len(batch)
        if done % (recipe.forward_rows * 20) == 0 or done >= rows:
            for values in files.values():
                values.flush()
            done_path.write_text(json.dumps({"rows": done}))
            seconds = time.monotonic() - started
            speed, far = (done - first) * context / seconds, how_far(done, rows, first=first, seconds=seconds)
            print(f"activations: {done}/{rows} rows, {speed:.0f} tokens/s, {far}", flush=True)


def cached_activations(recipe: Recipe, layer: int, shape: tuple[int, int, int], work_dir: Path) -> Activations:
    """One layer's activations [row, position, d_model] from the cache, those over the norm threshold told apart."""
    rows, context, d_model = shape
    return _within_norm(recipe, _file(work_dir, layer, shape, "r").reshape(rows * context, d_model))


def _file(
    work_dir: Path, layer: int, shape: tuple[int, int, int], mode: Literal["r", "r+", "w+"]
) -> np.memmap[Any, np.dtype[np.float16]]:
    return np.memmap(work_dir / f"activations-l{layer}.f16", dtype=np.float16, mode=mode, shape=shape)


def _within_norm(recipe: Recipe, values: NDArray[np.float16]) -> Activations:
    chunks = range(0, len(values), 65536)
    norms = np.concatenate([np.linalg.norm(values[i : i + 65536].astype(np.float32), axis=1) for i in chunks])
    median = float(np.median(norms))
    threshold = recipe.norm_factor * median
    kept = np.flatnonzero(norms <= threshold)
    total = np.zeros(values.shape[1], dtype=np.float64)
    for i in range(0, len(kept), 65536):
        total += values[kept[i : i + 65536]].sum(axis=0, dtype=np.float64)
    return Activations(values, kept, threshold, median, (total / len(kept)).astype(np.float32))
