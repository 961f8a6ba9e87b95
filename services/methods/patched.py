"""What patching reports of its pairs, whichever method patched them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from services.contracts.patching import PatchedPair, PatchingSpec
from services.contracts.result import Baselines, PairTokens
from services.contracts.tensor import InlineTensor, Statistic
from services.methods.context import MethodContext
from services.methods.statistics import PairScalars, estimate, ratio_of_means

Effects = Float64[np.ndarray, "..."]


@dataclass(frozen=True)
class PatchedRuns:
    """One pair's numbers: the metric on its two unpatched runs, and the effects."""

    clean: float
    corrupted: float
    effects: Effects


@dataclass(frozen=True)
class Report:
    """The figures of a result, over all pairs and pair by pair."""

    pairs: tuple[PatchedPair, ...]
    effects: InlineTensor | Statistic
    normalized: InlineTensor | Statistic


def report(patched: Sequence[PatchedRuns], dims: tuple[str, ...], spec: PatchingSpec, context: MethodContext) -> Report:
    """Effects and normalized effects over all pairs; a warning where there is too little to normalise by."""
    effects = np.stack([pair.effects for pair in patched])
    clean = np.array([pair.clean for pair in patched])
    corrupted = np.array([pair.corrupted for pair in patched])
    unpatched, other = (corrupted, clean) if spec.method.mode == "denoising" else (clean, corrupted)
    normalized = normalize(effects, unpatched, other, dims, context)
    return Report(
        pairs=tuple(
            PatchedPair(
                tokens=PairTokens(clean=pair.clean, corrupted=pair.corrupted),
                differing_positions=pair.differing,
                baselines=Baselines(clean=numbers.clean, corrupted=numbers.corrupted),
                effects=InlineTensor.of(numbers.effects, dims) if spec.per_pair else None,
            )
            for pair, numbers in zip(context.inputs.pairs, patched, strict=True)
        ),
        effects=estimate(effects, dims),
        normalized=normalized,
    )


def normalize(
    effects: Float64[np.ndarray, "pair ..."],
    unpatched: PairScalars,
    other: PairScalars,
    dims: tuple[str, ...],
    context: MethodContext,
) -> InlineTensor | Statistic:
    """Effects over m(other) − m(unpatched); null, with a warning, where there is too little to normalise by."""
    normalized, meaningful = ratio_of_means(effects, other - unpatched, float(abs(unpatched.mean())), dims)
    warning = (
        f"normalized is null: clean and corrupted runs differ by {float((other - unpatched).mean()):.3g} in the "
        "metric, too little to divide by"
    )
    if not meaningful and warning not in context.warnings:
        context.warnings.append(warning)
    return normalized
