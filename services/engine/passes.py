"""What the two ways of running a batch have in common."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from services.contracts.site import SiteName
from services.engine.base_runs import BaseRun, Runs
from services.engine.lane import Lane, Place, RunKey
from services.engine.needs import RunNeeds
from services.engine.outcome import Execution, Outcome
from services.engine.readout import Divergence
from services.engine.row import Capture, Row, Site


@runtime_checkable
class Passes(Protocol):
    """A way of running batches of one model. Both methods run on the engine's thread."""

    execution: Execution

    def run(self, lanes: Sequence[Lane], runs: Runs) -> list[Outcome]:
        """Outcomes of `lanes`, given all the unpatched runs that they need."""

    def record(self, batch: Sequence[tuple[RunKey, RunNeeds]]) -> list[BaseRun]:
        """What is needed of some unpatched runs."""


def captures_of(needs: RunNeeds) -> tuple[Capture, ...]:
    """The captures that bring the activations a run is needed for."""
    return tuple(Capture(Site(*place)) for place in sorted(needs.places, key=str))


def activations_of(captures: Mapping[Capture, Float[Tensor, "_position ..."]]) -> dict[Place, Tensor]:
    """Captures of all positions, by place."""
    return {(capture.site.name, capture.site.layer): taken for capture, taken in captures.items()}


def reference_of(lane: Lane, runs: Runs) -> Float[Tensor, " vocabulary"] | None:
    """The log probabilities that a lane's divergence is measured against."""
    readout = lane.row.readout
    if not isinstance(readout, Divergence):
        return None
    return runs[RunKey(lane.owner, readout.reference)].log_probs[readout.position]


def depth_of(row: Row, layers: int) -> int:
    """How many blocks a row has to go through for what it reads and captures."""
    if row.readout is not None:
        return layers
    return max((_depth_of_site(capture.site) for capture in row.captures), default=0)


def _depth_of_site(site: Site) -> int:
    if site.layer is None:
        return 0
    return site.layer if site.name is SiteName.RESID_PRE else site.layer + 1
