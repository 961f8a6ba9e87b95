"""`patching`: put activations of one run into another and see what the metric does."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from services.contracts.base import CatalogueId, Contract
from services.contracts.errors import Violation
from services.contracts.feature_patching import FeaturePatching
from services.contracts.inputs import Inputs
from services.contracts.metric import LogitDiff, Metric
from services.contracts.model import ModelFacts
from services.contracts.path_patching import PathPatching
from services.contracts.prompt import Pair
from services.contracts.result import Baselines, PairTokens, Result
from services.contracts.sae import SaeFacts
from services.contracts.site import HEAD_SITES, SiteName
from services.contracts.spec import Asked, Spec
from services.contracts.sweep import Sweep, position_violations
from services.contracts.tensor import Estimate


class ActivationPatching(Sweep):
    """Patch one site, one cell per run.

    `denoising` puts clean activations into the corrupted run, `noising` the reverse.
    """

    type: Literal["activation_patching"]
    mode: Literal["denoising", "noising"] = "denoising"

    def input_violations(self, inputs: Inputs) -> Iterator[Violation]:
        """Positions to sweep that some pair lacks, and sweeps over every position of pairs of different lengths."""
        every = self.site not in HEAD_SITES
        yield from position_violations(self.positions, inputs.pairs, "/method/positions", every=every)


class PatchingSpec(Spec):
    kind: Literal["patching"]
    method: Annotated[ActivationPatching | PathPatching | FeaturePatching, Field(discriminator="type")]
    pairs: Annotated[tuple[Pair, ...], Field(min_length=1, max_length=1_000)]
    metric: Metric = LogitDiff()
    per_pair: Annotated[bool, Field(description="Also report every pair's own effects.")] = False

    def asked(self) -> Asked:
        return Asked(pairs=self.pairs, metric=self.metric)

    def sae_id(self) -> CatalogueId | None:
        return self.method.sae if isinstance(self.method, FeaturePatching) else None

    def sae_pointer(self) -> str:
        return "/method/sae"

    def writes_features(self) -> bool:
        return isinstance(self.method, FeaturePatching)

    def sae_violations(self, sae: SaeFacts) -> Iterator[Violation]:
        if isinstance(self.method, FeaturePatching):
            yield from self.method.sae_violations(sae)

    def violations(self, facts: ModelFacts) -> Iterator[Violation]:
        """What this model cannot do: parts that do not exist, a site it lacks."""
        if isinstance(self.method, FeaturePatching):
            yield from self.method.metric_violations(self.metric)
        yield from self.method.violations(facts, "/method")

    def input_violations(self, inputs: Inputs) -> Iterator[Violation]:
        yield from self.method.input_violations(inputs)


class PatchedPair(Contract):
    tokens: PairTokens
    differing_positions: tuple[int, ...]
    baselines: Baselines
    effects: Estimate | None = None


class PatchingResult(Result):
    """Of activation and path patching. `effects` = m(patched) − m(unpatched) in the metric's units; `normalized` =
    effect / (m(other) − m(unpatched)).

    `layers`, `heads`, `senders` and `positions` label the axes named in `dims`. `site`, `layers` and `heads` are of
    activation patching, `senders` and `receivers` of path patching.
    """

    kind: Literal["patching"] = "patching"
    method: Literal["activation_patching", "path_patching"] = "activation_patching"
    site: SiteName | None = None
    mode: Literal["denoising", "noising"]
    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    senders: tuple[str, ...] | None = None
    receivers: tuple[str, ...] | None = None
    positions: tuple[int | str, ...] | None = None
    pairs: tuple[PatchedPair, ...]
    effects: Estimate
    normalized: Estimate
