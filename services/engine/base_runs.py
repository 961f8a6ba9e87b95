"""What is kept of unpatched runs, so that a sweep computes each of them once.

The cache is bounded by bytes, least recently used first out, and keyed by model, tokens and owner: whether a prompt was
asked before must not show to another tenant.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from services.contracts.site import SiteName
from services.engine.lane import Place, RunKey

RESIDUALS = (SiteName.RESID_PRE, SiteName.RESID_POST)
"""The sites that a stem holds."""


@dataclass(frozen=True, eq=False)
class Stem:
    """What a branch grows on: the residual stream before every block and after the last, and every block's keys and
    values as attention uses them."""

    residuals: Sequence[Float[Tensor, "position d_model"]]
    keys: Sequence[Float[Tensor, "kv_head position d_head"]]
    values: Sequence[Float[Tensor, "kv_head position d_head"]]


@dataclass(frozen=True, eq=False)
class BaseRun:
    """One unpatched run, as far as it has been asked for; `log_probs` are the next token's, by position."""

    stem: Stem | None = None
    activations: Mapping[Place, Float[Tensor, "position ..."]] = field(default_factory=dict)
    log_probs: Mapping[int, Float[Tensor, " vocabulary"]] = field(default_factory=dict)

    def joined(self, other: "BaseRun") -> "BaseRun":
        """This run with what `other` knows of it too."""
        return BaseRun(
            self.stem or other.stem,
            {**self.activations, **other.activations},
            {**self.log_probs, **other.log_probs},
        )

    def activation(self, place: Place) -> Float[Tensor, "position ..."]:
        """What was recorded at `place`."""
        site, layer = place
        if self.stem is not None and site in RESIDUALS and layer is not None:
            return self.stem.residuals[layer + RESIDUALS.index(site)]
        return self.activations[place]

    @property
    def nbytes(self) -> int:
        stem = () if self.stem is None else (*self.stem.residuals, *self.stem.keys, *self.stem.values)
        tensors = (*stem, *self.activations.values(), *self.log_probs.values())
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


Runs = Mapping[RunKey, BaseRun]


@dataclass
class CacheCounters:
    hits: int = 0
    misses: int = 0
    evictions: int = 0


class BaseRunCache:
    """Base runs of all models, by the model's own key and the run's. Used on the engine's thread alone."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._runs: OrderedDict[tuple[str, RunKey], BaseRun] = OrderedDict()
        self.nbytes = 0
        self.counters = CacheCounters()

    def get(self, model: str, key: RunKey) -> BaseRun:
        """What is known of a run; an empty record when nothing is."""
        run = self._runs.get((model, key))
        if run is None:
            self.counters.misses += 1
            return BaseRun()
        self.counters.hits += 1
        self._runs.move_to_end((model, key))
        return run

    def put(self, model: str, key: RunKey, run: BaseRun) -> None:
        """Keep `run`, letting go of the least recently used while they are too many bytes together."""
        previous = self._runs.pop((model, key), None)
        self.nbytes += run.nbytes - (previous.nbytes if previous else 0)
        self._runs[model, key] = run
        while self.nbytes > self._limit:
            _, evicted = self._runs.popitem(last=False)
            self.nbytes -= evicted.nbytes
            self.counters.evictions += 1
