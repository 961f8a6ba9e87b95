"""Rows with gradients: one whole forward and one backward pass for a batch of them.

1. Rows run as whole forward passes, right-padded, with their interventions and captures as ever.
2. Behind a site's interventions, a zero `delta` of the activation's shape is added; weights stay frozen.
3. Rows do not see each other, so the gradient of the sum of their objectives holds every row's own.
4. The gradient at a delta is the gradient at that activation, by every path that leads on from there.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from services.engine.agenda import Agenda
from services.engine.base_runs import Runs
from services.engine.lane import Lane, Place
from services.engine.objective import objective_value
from services.engine.outcome import Execution, Outcome
from services.engine.passes import reference_of
from services.engine.reading import numbers_of, reported
from services.engine.readout import TopK
from services.engine.row import Capture
from services.engine.site_work import Read, SiteWork
from services.engine.whole import Logits, WholePasses
from services.models.load import LoadedModel

Taken = Mapping[Capture, Float[Tensor, "position ..."]]


class GradientPasses:
    """Runs batches of one model's rows that ask for gradients."""

    execution: Execution = "whole"

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._whole = WholePasses(model)

    @torch.enable_grad()
    def run(self, lanes: Sequence[Lane], runs: Runs) -> list[Outcome]:
        """Outcomes of `lanes`, all of which start at 0 and have gradients, given the unpatched runs they need."""
        agenda = TappedAgenda(self._model, lanes, runs)
        numbers = _numbers(lanes, self._whole.logits(lanes, agenda), runs)
        gradients = agenda.gradients(_objective(lanes, numbers))
        return [
            Outcome(
                reading=reported(numbers[index].detach()),
                captures=agenda.reported_captures(index),
                execution=self.execution,
                gradients=gradients[index],
            )
            for index in range(len(lanes))
        ]


class TappedAgenda(Agenda):
    """An agenda that also adds a zero delta wherever one of its lanes asks for a gradient."""

    def __init__(self, model: LoadedModel, lanes: Sequence[Lane], runs: Runs) -> None:
        super().__init__(model, lanes, runs)
        self._lanes = lanes
        self._asked: dict[Place, list[tuple[int, Capture]]] = defaultdict(list)
        self._deltas: dict[Place, Tensor] = {}
        for index, lane in enumerate(lanes):
            assert lane.row.gradients is not None
            for capture in lane.row.gradients.sites:
                self._asked[capture.site.name, capture.site.layer].append((index, capture))

    def places(self) -> set[Place]:
        return super().places() | set(self._asked)

    def perform(self, place: Place, activation: Float[Tensor, "row ..."]) -> Float[Tensor, "row ..."]:
        activation = super().perform(place, activation)
        if place not in self._asked:
            return activation
        delta = activation.new_zeros(()).expand(activation.shape).requires_grad_()  # takes no memory
        self._deltas[place] = delta
        return activation + delta

    def gradients(self, objective: Float[Tensor, ""]) -> list[Taken]:
        """By lane, the gradient of `objective` at what the lane asks for: float32 on the CPU.

        Raises:
            RuntimeError: the model did not take an activation with its delta, so its gradient is unknown, not zero.
        """
        found: list[dict[Capture, Tensor]] = [{} for _ in self._lanes]
        deltas = [self._deltas[place] for place in self._asked]
        gradients = torch.autograd.grad(objective, deltas)
        for (place, asked), gradient in zip(self._asked.items(), gradients, strict=True):
            reads = [self._read(index, capture) for index, capture in asked]
            for (index, capture), taken in zip(asked, SiteWork(place[0], [], reads).read(gradient), strict=True):
                found[index][capture] = reported(taken)
        return list(found)

    def _read(self, index: int, capture: Capture) -> Read:
        lane = self._lanes[index]
        return Read(index, lane.slots(capture.positions), capture.site.head, keys=len(lane.row.tokens))


def _numbers(lanes: Sequence[Lane], logits: Logits, runs: Runs) -> list[Float[Tensor, "..."]]:
    """Every lane's reading, differentiable."""
    numbers = []
    for index, lane in enumerate(lanes):
        readout = lane.row.readout
        assert readout is not None
        assert not isinstance(readout, TopK)
        numbers.append(numbers_of(readout, logits[index], reference_of(lane, runs)))
    return numbers


def _objective(lanes: Sequence[Lane], numbers: Sequence[Float[Tensor, "..."]]) -> Float[Tensor, ""]:
    """The sum of all lanes' objectives."""
    values = []
    for lane, own in zip(lanes, numbers, strict=True):
        assert lane.row.gradients is not None
        values.append(objective_value(lane.row.gradients.objective, own))
    return torch.stack(values).sum()
