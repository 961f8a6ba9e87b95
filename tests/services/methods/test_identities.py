"""What must hold exactly, in every family, whatever the weights."""

from typing import Any

import numpy as np
import pytest

from services.contracts.tensor import InlineTensor
from tests.families import FAMILIES, NATIVES
from tests.services.methods.conftest import Laboratory

EVERY = (*FAMILIES, *NATIVES)
CLEAN = "When John and Mary went to the shops, John gave the bag to"
CORRUPTED = "When John and Mary went to the shops, Mary gave the bag to"
PAIR = {"clean": CLEAN, "corrupted": CORRUPTED, "answer": " Mary", "foil": " John"}
SAME = PAIR | {"corrupted": CLEAN}
EXAMPLE = {"prompt": CLEAN, "answer": " Mary", "foil": " John"}


def model_id(family: str) -> str:
    return f"tiny-{family.replace('_', '-')}"


def patching(laboratory: Laboratory, family: str, pair: dict[str, Any], **method: Any) -> Any:
    method = {"type": "activation_patching", **method}
    return laboratory.run({"kind": "patching", "model": model_id(family), "method": method, "pairs": [pair]})


def array(estimate: Any) -> Any:
    assert isinstance(estimate, InlineTensor)
    return estimate.array()


@pytest.mark.parametrize("family", EVERY)
def test_the_residual_stream_before_all_layers_is_the_whole_other_run(every_family: Laboratory, family: str) -> None:
    for mode in ("denoising", "noising"):
        result = patching(every_family, family, PAIR, site="resid_pre", layers=[0], mode=mode)
        (differing,) = result.pairs[0].differing_positions
        restored = np.zeros(len(result.pairs[0].tokens.clean.ids))
        restored[differing] = 1.0
        np.testing.assert_allclose(array(result.normalized)[0], restored, atol=2e-4)


@pytest.mark.parametrize("family", EVERY)
def test_setting_that_stream_everywhere_at_once_is_the_other_run_too(every_family: Laboratory, family: str) -> None:
    """Also where the prompts share no token."""
    other = {"type": "tokens", "tokens": list(range(20, 34))}
    value = {"type": "run", "prompt": other}
    intervention = {"site": "resid_pre", "layer": 0, "operation": "set", "value": value}

    def run(prompt: dict[str, Any]) -> Any:
        return every_family.run(
            {
                "kind": "intervention",
                "model": model_id(family),
                "examples": [{"prompt": prompt, "answer": 40, "foil": 41}],
                "interventions": [intervention],
                "metric": {"type": "logit_diff"},
            }
        )

    changed, unchanged = run({"type": "tokens", "tokens": list(range(60, 74))}), run(other)
    assert changed.examples[0].metric.patched == pytest.approx(unchanged.examples[0].metric.unpatched, abs=1e-4)
    assert abs(changed.effect.mean) > 1e-3
    assert unchanged.effect.mean == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("family", EVERY)
def test_a_runs_own_activations_change_nothing(every_family: Laboratory, family: str) -> None:
    facts = every_family.catalogue.model(model_id(family))
    for site in facts.sites:
        if site.writable:
            effects = array(patching(every_family, family, SAME, site=site.name).effects)
            np.testing.assert_allclose(effects, 0, atol=1e-5, err_msg=site.name)


@pytest.mark.parametrize("family", EVERY)
def test_direct_logit_terms_add_up_to_the_metric(every_family: Laboratory, family: str) -> None:
    for metric in ("logit", "logit_diff"):
        result: Any = every_family.run(
            {
                "kind": "attribution",
                "model": model_id(family),
                "method": {"type": "direct_logit_attribution"},
                "examples": [EXAMPLE],
                "metric": {"type": metric},
            }
        )
        (example,) = result.attribution.examples
        terms = result.attribution.terms
        parts = [array(getattr(terms, name)) for name in type(terms).model_fields]
        assert example.sum_of_terms == pytest.approx(sum(part.sum() for part in parts), abs=1e-5)
        assert abs(example.metric - example.sum_of_terms) <= 1e-4 * sum(np.abs(part).sum() for part in parts)
        assert np.abs(array(terms.heads)).min() > 0
        assert result.warnings == ()
