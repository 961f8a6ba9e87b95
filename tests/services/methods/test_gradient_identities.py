"""What must hold of gradients in every family, whatever the weights."""

from typing import Any

import numpy as np
import pytest

from services.catalogue.catalogue import open_catalogue
from services.engine.engine import Engine
from tests.families import FAMILIES
from tests.prepared import prepare_family
from tests.services.methods.attribution_patching import PAIR, attribute, effects, job, nodes
from tests.services.methods.conftest import Laboratory
from tests.services.methods.test_input_attribution import integrated

POST_NORMS = ("gemma2", "gemma3_text", "olmo2")
"""Families with a norm between a layer's heads and what its attention adds."""


@pytest.fixture(scope="module")
def all_families(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    home = tmp_path_factory.mktemp("home")
    for family in FAMILIES:
        prepare_family(family, tmp_path_factory.mktemp("sources"), home)
    return Laboratory(engine, open_catalogue(home))


def body(family: str, **method: Any) -> dict[str, Any]:
    model = f"tiny-{family.replace('_', '-')}"
    return {"kind": "attribution", "model": model, "method": method, "pairs": [PAIR]}


@pytest.mark.parametrize("family", FAMILIES)
def test_integrated_gradients_complete_to_one_percent(all_families: Laboratory, family: str) -> None:
    (example,) = integrated(all_families, body(family, type="integrated_gradients", steps=200)).examples
    change = example.metric - example.baseline_metric
    assert abs(example.completeness_gap) < 0.01 * abs(change)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in POST_NORMS])
def test_the_heads_of_a_layer_add_up_to_its_attention(all_families: Laboratory, family: str) -> None:
    """What attention adds is linear in z; its bias is in both runs."""
    found = effects(attribute(all_families, job(family, nodes=["z", "attn_out"])))
    largest = np.abs(found["attn_out"]).max()
    np.testing.assert_allclose(found["z"].sum(1), found["attn_out"], atol=1e-4 * largest)


@pytest.mark.parametrize("family", FAMILIES)
def test_grad_drop_leaves_the_last_layers_estimates_as_they_are(all_families: Laboratory, family: str) -> None:
    """Dropping a layer before a node changes nothing there, and no other layer follows the last."""
    plain = effects(attribute(all_families, job(family, nodes=["z", "mlp_out"])))
    dropped = attribute(all_families, job(family, variant="atp_star", nodes=["z", "mlp_out"]))
    for site in ("z", "mlp_out"):
        last = np.abs(plain[site][-1])
        np.testing.assert_allclose(effects(dropped)[site][-1], last, atol=1e-4 * max(1e-3, last.max()))
        assert not nodes(dropped, site).signed
