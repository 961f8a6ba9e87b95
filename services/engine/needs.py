"""Which unpatched runs a set of rows leans on, and what of each."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from services.engine.agenda import Lane, Place, RunKey
from services.engine.base_runs import BaseRun
from services.engine.readout import Divergence, TokenLogProbs
from services.engine.row import Capture, FromRun, Row, Site


@dataclass
class RunNeeds:
    """What is needed of one run: activations of all positions at `places`, log probabilities at `positions`."""

    places: set[Place] = field(default_factory=set)
    positions: set[int] = field(default_factory=set)

    def beyond(self, known: BaseRun) -> "RunNeeds":
        """What `known` does not have yet."""
        return RunNeeds(self.places - set(known.activations), self.positions - set(known.log_probs))

    def rows(self, tokens: tuple[int, ...]) -> Iterator[Row]:
        """Rows that bring it."""
        if self.places:
            yield Row(
                tokens, captures=tuple(Capture(Site(name, layer)) for name, layer in sorted(self.places, key=str))
            )
        for position in sorted(self.positions):
            yield Row(tokens, readout=TokenLogProbs(position, None))


Needs = dict[RunKey, RunNeeds]


def needs_of(lanes: Iterable[Lane]) -> Needs:
    """What `lanes` need of unpatched runs."""
    needs: Needs = defaultdict(RunNeeds)
    for lane in lanes:
        for intervention in lane.row.interventions:
            if isinstance(intervention.value, FromRun):
                place = (intervention.site.name, intervention.site.layer)
                needs[RunKey(lane.owner, intervention.value.tokens)].places.add(place)
        if isinstance(lane.row.readout, Divergence):
            needs[RunKey(lane.owner, lane.row.readout.reference)].positions.add(lane.row.readout.position)
    return dict(needs)
