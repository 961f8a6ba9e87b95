"""Runs one batch: first what its rows need of unpatched runs, then the rows."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from services.engine.agenda import Agenda, Lane, Place, RunKey
from services.engine.base_runs import BaseRun, BaseRunCache
from services.engine.needs import Needs, RunNeeds, needs_of
from services.engine.outcome import Outcome
from services.engine.reading import read_logits
from services.engine.readout import Divergence, TokenLogProbs
from services.engine.whole import Logits, WholePasses
from services.models.load import LoadedModel


@dataclass(frozen=True, eq=False)
class _Ran:
    agenda: Agenda
    logits: Logits


class Executor:
    """Owns what is kept between batches: base runs, and how each model is driven."""

    def __init__(self, *, base_run_bytes: int) -> None:
        self.base_runs = BaseRunCache(base_run_bytes)
        self._whole: WeakKeyDictionary[LoadedModel, WholePasses] = WeakKeyDictionary()

    def run(self, model: LoadedModel, lanes: Sequence[Lane], foreseen: Needs, *, batch_tokens: int) -> list[Outcome]:
        """Outcomes of `lanes`, in their order.

        `foreseen` is what later batches of the same jobs will need of the same runs: taken along while at it.
        """
        runs = self._base_runs(model, needs_of(lanes), foreseen, batch_tokens)
        ran = self._pass(model, lanes, runs)
        return [self._outcome(ran, index, lane, runs) for index, lane in enumerate(lanes)]

    def _outcome(self, ran: _Ran, index: int, lane: Lane, runs: dict[RunKey, BaseRun]) -> Outcome:
        captures = {capture: taken.to("cpu", torch.float32) for capture, taken in ran.agenda.captures[index].items()}
        readout = lane.row.readout
        if readout is None:
            return Outcome(None, captures, "whole")
        reference = None
        if isinstance(readout, Divergence):
            reference = runs[RunKey(lane.owner, readout.reference)].log_probs[readout.position]
        return Outcome(read_logits(readout, ran.logits[index], reference), captures, "whole")

    def _pass(self, model: LoadedModel, lanes: Sequence[Lane], runs: dict[RunKey, BaseRun]) -> _Ran:
        def source(key: RunKey, place: Place) -> Tensor:
            return runs[key].activations[place]

        agenda = Agenda(lanes, model.facts, source, device=model.device, dtype=model.dtype)
        passes = self._whole.setdefault(model, WholePasses(model))
        return _Ran(agenda, passes.run(lanes, agenda))

    def _base_runs(
        self, model: LoadedModel, needed: Needs, foreseen: Needs, batch_tokens: int
    ) -> dict[RunKey, BaseRun]:
        """Every run in `needed`, computed as far as it is not in the cache."""
        identity = f"{model.facts.weights_sha256} {model.dtype} {model.device}"
        runs = {key: self.base_runs.get(identity, key) for key in needed}
        lanes = []
        for key, needs in needed.items():
            if needs.beyond(runs[key]) != RunNeeds():
                wanted = foreseen.get(key, needs).beyond(runs[key])
                lanes += [Lane(row, key.owner) for row in wanted.rows(key.tokens)]
        for batch in _chunks(lanes, batch_tokens):
            ran = self._pass(model, batch, {})
            for index, lane in enumerate(batch):
                key = RunKey(lane.owner, lane.row.tokens)
                runs[key] = runs[key].joined(_found(ran, index, lane))
        for key in {RunKey(lane.owner, lane.row.tokens) for lane in lanes}:
            self.base_runs.put(identity, key, runs[key])
        return runs


def _found(ran: _Ran, index: int, lane: Lane) -> BaseRun:
    activations = {
        (capture.site.name, capture.site.layer): taken for capture, taken in ran.agenda.captures[index].items()
    }
    readout = lane.row.readout
    if readout is None:
        return BaseRun(activations)
    assert isinstance(readout, TokenLogProbs)
    return BaseRun(log_probs={readout.position: ran.logits[index][-1].log_softmax(-1)})


def _chunks(lanes: Iterable[Lane], batch_tokens: int) -> Iterator[list[Lane]]:
    """Lanes of similar length together, up to the token budget."""
    batch: list[Lane] = []
    for lane in sorted(lanes, key=lambda lane: (lane.row.readout is None, len(lane.row.tokens))):
        if batch and (
            (len(batch) + 1) * len(lane.row.tokens) > batch_tokens
            or (batch[0].row.readout is None) != (lane.row.readout is None)
        ):
            yield batch
            batch = []
        batch.append(lane)
    if batch:
        yield batch
