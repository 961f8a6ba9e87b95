"""Every drill of `make chaos` in small: real processes die, and what must hold holds.

The drills mostly wait for leases to expire, so they run side by side in three lanes, each on a deployment of its own.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.chaos.drill import SHORT, Drill, Findings
from tests.chaos.drills import ALL, disk, frozen, gateway, malformed, poison, store, vanishing, waiting, workers
from tests.chaos.plant import running_plant

LANES: Sequence[Sequence[Drill]] = (
    (poison.DRILL,),
    (workers.DRILL, frozen.DRILL),
    (disk.DRILL, malformed.DRILL, waiting.DRILL, vanishing.DRILL, gateway.DRILL, store.DRILL),
)

pytestmark = pytest.mark.timeout(900)


def run_lane(lane: Sequence[Drill], home: Path, prepared: Path, found: Mapping[str, "Future[Findings]"]) -> None:
    """The drills of a lane one after another on one deployment; what ends the lane early fails those left."""
    try:
        with running_plant(home, prepared, workers=max(drill.workers for drill in lane)) as plant:
            for drill in lane:
                found[drill.name].set_result(drill.run(plant, SHORT))
    except BaseException as error:
        for drill in lane:
            if not found[drill.name].done():
                found[drill.name].set_exception(error)


@pytest.fixture(scope="module")
def found(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, "Future[Findings]"]]:
    found: dict[str, Future[Findings]] = {drill.name: Future() for drill in ALL}
    with ThreadPoolExecutor(len(LANES), "lane") as lanes:
        for number, lane in enumerate(LANES):
            lanes.submit(run_lane, lane, tmp_path_factory.mktemp(f"lane-{number}") / "home", home, found)
        yield found


@pytest.mark.parametrize("drill", ALL, ids=lambda drill: drill.name)
def test_what_must_hold_holds(drill: Drill, found: Mapping[str, "Future[Findings]"]) -> None:
    findings = found[drill.name].result()
    assert findings.checks
    assert not findings.broken, "\n".join(str(check) for check in findings.broken)


def test_every_drill_is_in_one_lane() -> None:
    assert sorted(drill.name for lane in LANES for drill in lane) == sorted(drill.name for drill in ALL)
