"""What a drill is, how much of it is done, and what it finds: counts beside what must hold."""

from collections.abc import Callable
from dataclasses import dataclass, field

from tests.chaos.plant import Plant


@dataclass(frozen=True)
class Check:
    """One thing that must hold, and what was seen of it."""

    what: str
    must: str
    seen: str
    held: bool


@dataclass
class Findings:
    """What one drill saw; `figures` are worth knowing but bound to nothing."""

    checks: list[Check] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)

    def equal(self, what: str, must: object, seen: object) -> None:
        self.checks.append(Check(what, str(must), str(seen), must == seen))

    def at_most(self, what: str, bound: float, seen: float, unit: str = "") -> None:
        self.checks.append(Check(what, f"≤ {bound:g}{unit}", f"{seen:.4g}{unit}", seen <= bound))

    def at_least(self, what: str, bound: float, seen: float, unit: str = "") -> None:
        self.checks.append(Check(what, f"≥ {bound:g}{unit}", f"{seen:.4g}{unit}", seen >= bound))

    def holds(self, what: str, must: str, seen: object, held: object) -> None:
        self.checks.append(Check(what, must, str(seen), bool(held)))

    def note(self, figure: str) -> None:
        self.figures.append(figure)

    @property
    def broken(self) -> list[Check]:
        return [check for check in self.checks if not check.held]


@dataclass(frozen=True)
class Scale:
    """How much of a drill is done. The short one proves that the drill works, the full one the product."""

    jobs: int = 2_000
    kills: int = 5
    """Of Valkey, and of the gateway."""
    between_kills_s: float = 5.0
    clients: int = 10_000
    """Clients that vanish."""
    waiting: int = 1_000
    """Clients that wait at once."""
    neighbours: int = 31
    worker_kills: int = 5
    """At least so many while the jobs last."""
    pace: float = 20.0
    """Jobs submitted a second."""
    patience: float = 1.0
    """What bounds of time are multiplied by: beside other tests no clock decides."""
    memory: bool = True
    """Whether a job outgrows memory, too: another minute of leases."""


FULL = Scale()
SHORT = Scale(
    jobs=60,
    kills=2,
    between_kills_s=4.0,
    clients=300,
    waiting=200,
    memory=False,
    worker_kills=1,
    patience=20.0,
    pace=12.0,
)


@dataclass(frozen=True)
class Drill:
    """`title` is what is done to the deployment, which has `workers` workers and is whole again afterwards."""

    name: str
    title: str
    run: Callable[[Plant, Scale], Findings]
    workers: int = 1
