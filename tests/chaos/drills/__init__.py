"""One file per drill; `ALL` is the order in which they run."""

from tests.chaos.drills import workers

ALL = (workers.DRILL,)
