"""What all methods of attribution share."""

from collections.abc import Iterator

from services.contracts.base import CatalogueId, Request
from services.contracts.errors import ErrorCode, Violation
from services.contracts.inputs import Inputs
from services.contracts.metric import KlDivergence, Metric
from services.contracts.model import ModelFacts
from services.contracts.sae import SaeFacts


class AttributionMethodBase(Request):
    """The base of every method of attribution; what it refuses is refused before the queue."""

    def takes_pairs(self) -> bool:
        """Whether it works on clean and corrupted pairs; on examples otherwise."""
        return False

    def sae_id(self) -> CatalogueId | None:
        """The SAE that it needs, named at `/method/sae`."""
        return None

    def writes_features(self) -> bool:
        """Whether it changes the activation that its SAE reads."""
        return False

    def sae_violations(self, sae: SaeFacts) -> Iterator[Violation]:
        """What its SAE cannot do."""
        del sae
        yield from ()

    def metric_violations(self, metric: Metric) -> Iterator[Violation]:
        """A metric that it cannot share out, at `/metric`, with the alternative."""
        del metric
        yield from ()

    def violations(self, facts: ModelFacts) -> Iterator[Violation]:
        """What the model cannot do, at pointers below `/method`."""
        del facts
        yield from ()

    def input_violations(self, inputs: Inputs) -> Iterator[Violation]:
        """What does not fit the inputs once they are read."""
        del inputs
        yield from ()


def clean_gradient_violations(metric: Metric, instead: str) -> Iterator[Violation]:
    """The divergence from the clean run, for a method that takes gradients at the clean run; `instead` follows it."""
    if isinstance(metric, KlDivergence):
        message = f"kl_divergence is least at the clean run, so its gradient there is zero: {instead}"
        yield Violation("/metric/type", ErrorCode.UNSUPPORTED_METRIC, message)
