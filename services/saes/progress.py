"""How far a long pass is, for the line that it prints now and then."""


def how_far(done: int, total: int, *, first: int, seconds: float) -> str:
    """`34%, about 12 min left`: `done` of `total` are done, of which this run did those after `first`, in `seconds`."""
    left = (total - done) * seconds / max(1, done - first) / 60
    return f"{100 * done // total}%, about {left:.0f} min left"
