"""One file per drill; `ALL` is the order in which they run."""

from tests.chaos.drills import disk, frozen, gateway, malformed, poison, store, vanishing, waiting, workers

ALL = (
    workers.DRILL,
    store.DRILL,
    gateway.DRILL,
    frozen.DRILL,
    poison.DRILL,
    disk.DRILL,
    vanishing.DRILL,
    waiting.DRILL,
    malformed.DRILL,
)
