"""The estimate against counting by hand, and its limits."""

import json
from typing import Any

import pytest
from pydantic import TypeAdapter

from services.catalogue.catalogue import Catalogue
from services.catalogue.cost import Cost
from services.catalogue.resolve import Limits, resolve
from services.contracts.errors import ErrorCode, InvalidSpec
from services.contracts.job import JobSpec

SPEC: TypeAdapter[JobSpec] = TypeAdapter(JobSpec)
LENGTH, DIFFERS, LAYERS, HEADS, KV_HEADS = 8, 3, 3, 4, 2


def tokens(changed: int | None = None) -> dict[str, Any]:
    return {"type": "tokens", "tokens": [9 if index == changed else 5 for index in range(LENGTH)]}


def body(site: str, pairs: int = 1, **method: Any) -> dict[str, Any]:
    pair = {"clean": tokens(), "corrupted": tokens(DIFFERS), "answer": 5, "foil": 6, "positions": {"END": -1}}
    sweep = {"type": "activation_patching", "site": site, **method}
    return {"kind": "patching", "model": "tiny-llama", "method": sweep, "pairs": [pair] * pairs}


def cost(spec: dict[str, Any], catalogue: Catalogue, limits: Limits | None = None) -> Cost:
    return resolve(SPEC.validate_json(json.dumps(spec)), catalogue, limits or Limits()).cost


def blocks(layers: list[int], starts: list[int]) -> int:
    """Positions through blocks of one patched run per layer and start, each counted."""
    return sum(1 for layer in layers for start in starts for _ in range(layer, LAYERS) for _ in range(start, LENGTH))


UNPATCHED = 2 * LENGTH * LAYERS


def test_a_sweep_costs_its_two_runs_and_the_part_of_each_patched_run_that_changes(tiny: Catalogue) -> None:
    free = LAYERS * DIFFERS
    expected = UNPATCHED + blocks([0, 1, 2], list(range(DIFFERS, LENGTH))) + free
    assert cost(body("resid_pre"), tiny) == Cost(expected, 2 * LAYERS * LENGTH * 4)
    assert cost(body("resid_pre", pairs=3), tiny) == Cost(3 * expected, 4 * LAYERS * LENGTH * 4)


def test_heads_count_and_key_value_heads_count_as_they_are(tiny: Catalogue) -> None:
    assert cost(body("z"), tiny).token_layers == UNPATCHED + HEADS * blocks([0, 1, 2], [DIFFERS])
    assert cost(body("v"), tiny).token_layers == UNPATCHED + KV_HEADS * blocks([0, 1, 2], [DIFFERS])
    chosen = body("z", heads=[1], layers=[2], positions=[0, "END"])
    assert cost(chosen, tiny) == Cost(UNPATCHED + 1 + blocks([2], [LENGTH - 1]), 2 * 2 * 4)


def test_a_changed_embedding_goes_through_every_block_and_position(tiny: Catalogue) -> None:
    whole = (LENGTH - DIFFERS) * LENGTH * LAYERS
    assert cost(body("embed"), tiny) == Cost(UNPATCHED + whole + DIFFERS, 2 * LENGTH * 4)


def test_the_residual_stream_after_a_layer_is_patched_in_the_next(tiny: Catalogue) -> None:
    after = cost(body("resid_post", layers=[0, 1]), tiny).token_layers
    assert after == cost(body("resid_pre", layers=[1, 2]), tiny).token_layers


def test_own_effects_of_every_pair_make_the_result_larger(tiny: Catalogue) -> None:
    plain, own = body("resid_pre", pairs=5), body("resid_pre", pairs=5) | {"per_pair": True}
    assert cost(own, tiny).output_bytes - cost(plain, tiny).output_bytes == 5 * LAYERS * LENGTH * 4


def test_attribution_patching_costs_three_passes_a_pair_and_the_mean_node_for_each_that_is_checked(
    tiny: Catalogue,
) -> None:
    spec = body("z") | {"kind": "attribution", "method": {"type": "attribution_patching"}}
    runs = LENGTH * LAYERS + 3 * LENGTH * LAYERS
    mean_node = blocks([0, 1, 2], list(range(DIFFERS, LENGTH))) / (LAYERS * (LENGTH - DIFFERS))
    cells = LAYERS * (HEADS + 1) * LENGTH
    expected = Cost(runs + UNPATCHED + 1 + round(20 * mean_node), cells * 4 + 20 * 160)
    assert cost(spec, tiny) == expected
    own = cost(spec | {"per_example": True}, tiny)
    assert own.output_bytes - expected.output_bytes == cells * 4


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(token_layers=100), "token-layers of work (about 0 minutes), and may have 100"),
        (Limits(output_bytes=10), f"the job has {2 * LAYERS * LENGTH * 4} bytes of result, and may have 10"),
        (Limits(tokens=15), "the job has 16 tokens, and may have 15"),
    ],
)
def test_a_job_over_a_limit_is_refused_with_the_estimate_and_the_limit(
    tiny: Catalogue, limits: Limits, message: str
) -> None:
    with pytest.raises(InvalidSpec) as refused:
        cost(body("resid_pre"), tiny, limits)
    (violation,) = refused.value.violations
    assert violation.code is ErrorCode.JOB_TOO_LARGE
    assert message in violation.message
    assert "in several jobs" in violation.message
