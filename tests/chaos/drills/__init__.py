"""One file per drill; `ALL` is the order in which they run."""

from tests.chaos.drills import frozen, gateway, poison, store, workers

ALL = (workers.DRILL, store.DRILL, gateway.DRILL, frozen.DRILL, poison.DRILL)
