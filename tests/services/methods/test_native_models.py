"""Jobs on a model of attention alone: what runs says how, what cannot run is refused before the queue."""

import pytest

from services.contracts.errors import ErrorCode, InvalidSpec
from tests.services.methods.conftest import Laboratory

PAIR = {
    "clean": "When John and Mary went to the shops, John gave the bag to",
    "corrupted": "When John and Mary went to the shops, Mary gave the bag to",
    "answer": " Mary",
    "foil": " John",
}


def job(site: str) -> dict[str, object]:
    method = {"type": "activation_patching", "site": site}
    return {"kind": "patching", "model": "tiny-native-attention", "method": method, "pairs": [PAIR]}


def test_a_sweep_says_that_it_ran_as_whole_passes(laboratory: Laboratory) -> None:
    result = laboratory.run(job("z"))
    assert result.provenance.execution == "whole"


@pytest.mark.parametrize("site", ["mlp_out", "resid_mid"])
def test_a_sweep_over_a_site_around_an_mlp_is_refused(laboratory: Laboratory, site: str) -> None:
    with pytest.raises(InvalidSpec) as refused:
        laboratory.run(job(site))
    (violation,) = refused.value.violations
    assert (violation.pointer, violation.code) == ("/method/site", ErrorCode.UNKNOWN_SITE)
    assert "it has no MLP" in violation.message
