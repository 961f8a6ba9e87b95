"""A sweep summed up costs what its rows cost one by one."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from services.catalogue.costs.rows import PlannedRow, PlannedSweep, Touch, work
from services.contracts.site import SiteName

DEPTH, LENGTH = 4, 6
PLACES = st.integers(0, LENGTH - 1)


@given(
    site=st.sampled_from([SiteName.EMBED, SiteName.RESID_PRE, SiteName.RESID_POST, SiteName.Z]),
    layers=st.lists(st.integers(0, DEPTH - 1), min_size=1, max_size=5),
    starts=st.lists(PLACES, min_size=1, max_size=5),
    reads_at=st.none() | PLACES,
    times=st.integers(1, 3),
    beside=st.integers(0, 2),
)
def test_a_sweep_costs_what_its_rows_cost(  # noqa: PLR0917 - hypothesis passes them by name
    site: SiteName, layers: list[int], starts: list[int], reads_at: int | None, times: int, beside: int
) -> None:
    tokens = tuple(range(LENGTH))
    others = [PlannedRow(tokens, DEPTH, reads_at=reads_at)] * beside
    rows = [
        PlannedRow(tokens, DEPTH, (Touch(site, layer, start),), reads_at)
        for layer in layers
        for start in starts
        for _ in range(times)
    ]
    sweep = PlannedSweep(tokens, DEPTH, site, layers, Counter(starts), reads_at, times)
    assert work([sweep, *others], DEPTH) == work([*rows, *others], DEPTH)
