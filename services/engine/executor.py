"""Runs one batch: first what its rows need of unpatched runs, then the rows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from services.engine.base_runs import BaseRun, BaseRunCache
from services.engine.branched import BranchedPasses
from services.engine.gradient_passes import GradientPasses
from services.engine.kept_captures import KeptCaptures
from services.engine.lane import Lane, RunKey
from services.engine.needs import Needs, RunNeeds, needs_of
from services.engine.opening import UnknownFamily
from services.engine.outcome import Outcome
from services.engine.passes import Passes
from services.engine.trial import holds
from services.engine.whole import WholePasses
from services.models.load import LoadedModel

_SHARE_OF_CAPTURES = 4
"""Kept activations may take a fourth of what base runs may, besides."""


@dataclass(frozen=True)
class Ran:
    """What a batch yielded, the tokens that went into unpatched runs for it, and which of its lanes were `known`."""

    outcomes: Sequence[Outcome]
    base_tokens: int
    known: Sequence[bool]


class Executor:
    """Owns the base runs and the activations that are kept between batches."""

    def __init__(self, *, base_run_bytes: int) -> None:
        self.base_runs = BaseRunCache(base_run_bytes)
        self.kept = KeptCaptures(base_run_bytes // _SHARE_OF_CAPTURES)

    def run(self, model: LoadedModel, lanes: Sequence[Lane], foreseen: Needs, *, batch_tokens: int) -> Ran:
        """Run `lanes`, in a batch of at most `batch_tokens` tokens or one lane; all of them with gradients, or none.

        `foreseen` is what later batches of the same jobs will need of the same runs: taken along while at it.
        """
        identity = _identity(model)
        known = [self.kept.get(identity, lane) for lane in lanes]
        unknown = [lane for lane, outcome in zip(lanes, known, strict=True) if outcome is None]
        ran, base_tokens = self._run(model, unknown, foreseen, batch_tokens) if unknown else ([], 0)
        for lane, outcome in zip(unknown, ran, strict=True):
            self.kept.put(identity, lane, outcome)
        fresh = iter(ran)
        outcomes = [next(fresh) if outcome is None else outcome for outcome in known]
        return Ran(outcomes, base_tokens, [outcome is not None for outcome in known])

    def _run(
        self, model: LoadedModel, lanes: Sequence[Lane], foreseen: Needs, batch_tokens: int
    ) -> tuple[list[Outcome], int]:
        passes = _passes_of(model)
        if passes.execution == "whole":
            lanes = [replace(lane, start=0, join=0, grafted=False) for lane in lanes]
        needs = needs_of(lanes)
        runs, base_tokens = self._base_runs(model, passes, needs, foreseen, batch_tokens)
        run = passes.run if lanes[0].row.gradients is None else _gradient_passes_of(model).run
        outcomes: list[Outcome] = []
        for batch in _batches(lanes, batch_tokens):
            outcomes += run(batch, runs)
        return outcomes, base_tokens

    def _base_runs(
        self, model: LoadedModel, passes: Passes, needed: Needs, foreseen: Needs, batch_tokens: int
    ) -> tuple[Mapping[RunKey, BaseRun], int]:
        """Every run in `needed`, computed as far as it is not in the cache."""
        identity = _identity(model)
        runs = {key: self.base_runs.get(identity, key) for key in needed}
        missing = [
            (key, needs.joined(foreseen.get(key, needs)).beyond(runs[key]))
            for key, needs in sorted(needed.items(), key=lambda item: len(item[0].tokens))
            if needs.beyond(runs[key])
        ]
        for batch in _base_batches(model, missing, batch_tokens):
            for (key, _), found in zip(batch, passes.record(batch), strict=True):
                runs[key] = runs[key].joined(found)
                self.base_runs.put(identity, key, runs[key])
        return runs, sum(len(key.tokens) for key, _ in missing)


def _identity(model: LoadedModel) -> str:
    return f"{model.facts.id} {model.facts.weights_sha256} {model.dtype} {model.device}"


def _passes_of(model: LoadedModel) -> Passes:
    """Branched where a trial shows that it holds, else whole; found out once and kept with the model."""
    if "passes" not in model.attachments:
        model.attachments["passes"] = _tried(model)
    passes: Passes = model.attachments["passes"]
    return passes


def _gradient_passes_of(model: LoadedModel) -> GradientPasses:
    if "gradient_passes" not in model.attachments:
        model.attachments["gradient_passes"] = GradientPasses(model)
    passes: GradientPasses = model.attachments["gradient_passes"]
    return passes


def _tried(model: LoadedModel) -> Passes:
    whole = WholePasses(model)
    try:
        branched = BranchedPasses(model)
        return branched if holds(branched, whole, model) else whole
    except UnknownFamily:
        return whole


def _batches(lanes: Sequence[Lane], batch_tokens: int) -> Iterator[Sequence[Lane]]:
    """Whole passes are longer than what the lanes were counted for: cut to the budget, in their order."""
    longest = max(lane.reach for lane in lanes)
    size = max(1, batch_tokens // longest)
    for first in range(0, len(lanes), size):
        yield lanes[first : first + size]


def _base_batches(
    model: LoadedModel, missing: Sequence[tuple[RunKey, RunNeeds]], batch_tokens: int
) -> Iterator[Sequence[tuple[RunKey, RunNeeds]]]:
    """Runs ordered by length, cut where padding them together exceeds the budget or passes the short context."""
    batch: list[tuple[RunKey, RunNeeds]] = []
    for key, needs in missing:
        length = len(key.tokens)
        mixed = batch and model.is_long(len(batch[0][0].tokens)) != model.is_long(length)
        if batch and (mixed or (len(batch) + 1) * length > batch_tokens):
            yield batch
            batch = []
        batch.append((key, needs))
    if batch:
        yield batch
