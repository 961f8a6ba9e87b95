"""Sites that path patching writes, in a model that lacks one."""

import pytest

from services.contracts.model import SiteFacts
from services.contracts.path_patching import PathPatching
from services.contracts.site import SiteName
from tests.services.contracts.test_node import facts


@pytest.mark.parametrize(
    ("site", "method", "field"),
    [
        (SiteName.MLP_OUT, {"receivers": ["m1"]}, "senders"),
        (SiteName.MLP_OUT, {"receivers": ["m1"], "senders": ["a0.h0"], "freeze_mlps": True}, "freeze_mlps"),
        (SiteName.MLP_POST, {"receivers": ["a1.h0<q>", "m1"]}, "receivers"),
        (SiteName.K, {"receivers": ["a1.h0<q>", "a1.h0<k>"]}, "receivers"),
        (SiteName.EMBED, {"receivers": ["m1"], "senders": ["input"]}, "senders"),
        (SiteName.Z, {"receivers": ["m1"], "senders": ["m0"]}, "type"),
    ],
)
def test_a_site_that_cannot_be_written_is_refused_where_it_is_asked_for(
    site: SiteName, method: dict[str, object], field: str
) -> None:
    lacking = facts(sites=(SiteFacts(name=site, readable=True, writable=False, reason="it has no hook"),))
    path_patching = PathPatching.model_validate({"type": "path_patching", **method}, strict=False)
    (violation,) = path_patching.violations(lacking, "/method")
    assert violation.pointer == f"/method/{field}"
    assert violation.message == f"tiny cannot patch {site}: it has no hook"


def test_a_site_that_nothing_writes_may_be_missing() -> None:
    lacking = facts(sites=(SiteFacts(name=SiteName.MLP_OUT, readable=True, writable=False, reason="it has no hook"),))
    path_patching = PathPatching(type="path_patching", receivers=("a1.h0<q>",), senders=("a0.h0",))
    assert not list(path_patching.violations(lacking, "/method"))
