"""Which unpatched runs a set of rows leans on, and what of each."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from services.engine.base_runs import RESIDUALS, BaseRun
from services.engine.lane import Lane, Place, RunKey
from services.engine.readout import Divergence
from services.engine.row import FromRun


@dataclass
class RunNeeds:
    """Of one run: its stem, the activations of all positions at `places`, the log probabilities at `positions`."""

    stem: bool = False
    places: set[Place] = field(default_factory=set)
    positions: set[int] = field(default_factory=set)

    def beyond(self, known: BaseRun) -> "RunNeeds":
        """What `known` does not have yet."""
        return RunNeeds(
            self.stem and known.stem is None,
            self.places - set(known.activations),
            self.positions - set(known.log_probs),
        )

    def joined(self, other: "RunNeeds") -> "RunNeeds":
        """Both together."""
        return RunNeeds(self.stem or other.stem, self.places | other.places, self.positions | other.positions)

    def __bool__(self) -> bool:
        return self.stem or bool(self.places) or bool(self.positions)


Needs = dict[RunKey, RunNeeds]


def needs_of(lanes: Iterable[Lane]) -> Needs:
    """What `lanes` need of unpatched runs."""
    needs: Needs = defaultdict(RunNeeds)
    for lane in lanes:
        if lane.grafted:
            needs[lane.trunk].stem = True
        for intervention in lane.row.interventions:
            if isinstance(intervention.value, FromRun):
                source = needs[RunKey(lane.owner, intervention.value.tokens)]
                if intervention.site.name in RESIDUALS:
                    source.stem = True
                else:
                    source.places.add((intervention.site.name, intervention.site.layer))
        if isinstance(lane.row.readout, Divergence):
            needs[RunKey(lane.owner, lane.row.readout.reference)].positions.add(lane.row.readout.position)
    return dict(needs)
