"""The headers that say what the client would like: `Accept` and `Prefer`."""

import pytest

from api.negotiation import choose
from api.preferences import MAX_WAIT_S, preferred_wait
from services.contracts.errors import Refused

OFFERED = ("application/json", "application/vnd.safetensors", "application/x-npz")
JSON, SAFETENSORS, NPZ = OFFERED


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (None, JSON),
        ("", JSON),
        ("*/*", JSON),
        ("application/*", JSON),
        (SAFETENSORS, SAFETENSORS),
        ("Application/VND.Safetensors", SAFETENSORS),
        (f"{JSON}, {NPZ}", JSON),
        (f"{JSON};q=0.2, {NPZ};q=0.9", NPZ),
        (f"{JSON};q=0, */*", SAFETENSORS),
        (f"*/*;q=0.1, {NPZ};q=0.2", NPZ),
        (f"{NPZ};q=nan, {JSON};q=0.1", JSON),
        (f"{NPZ};q=5, {SAFETENSORS};q=1.000", SAFETENSORS),
        (f"{NPZ};version=1;q=1", NPZ),
        ("text/html,application/xhtml+xml,*/*;q=0.8", JSON),
    ],
)
def test_the_most_wanted_offer_is_chosen(accept: str | None, chosen: str) -> None:
    assert choose(accept, OFFERED) == chosen


@pytest.mark.parametrize("accept", ["text/html", "*/*;q=0", "application", ";;;", "application/json;q=0.0001"])
def test_nothing_is_chosen_that_was_not_wanted(accept: str) -> None:
    with pytest.raises(Refused, match="is not offered here"):
        choose(accept, OFFERED)


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        (None, None),
        ("", None),
        ("wait=10", 10),
        ("respond-async, wait=10", 10),
        ('Wait = "7" ', 7),
        ("wait=7; foo=bar, handling=lenient", 7),
        ("wait=600", MAX_WAIT_S),
        ("wait=999999999", MAX_WAIT_S),
        ("wait=0", 0),
        ("wait=-1", None),
        ("wait=1.5", None),
        ("wait", None),
        ("await=10", None),
        ("wait=" + "9" * 50, None),
    ],
)
def test_a_wait_is_read_and_bounded_and_nonsense_is_ignored(prefer: str | None, seconds: int | None) -> None:
    assert preferred_wait(prefer) == seconds
