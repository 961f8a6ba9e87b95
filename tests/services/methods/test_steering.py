"""What steering does to an activation, against a plain loop in float64: several items at once, thresholds, units."""

import pytest
import torch
from torch import Tensor

from services.saes.sae import Sae
from tests.brute_force import Reference
from tests.services.methods.conftest import Laboratory
from tests.services.methods.test_generation import (
    ALONG,
    DIRECTION,
    FEATURE,
    LAYER,
    assert_scores,
    clamped,
    feature_of,
    from_first,
    generate,
    greedy,
    make_sae,
    projected_out,
    reference,
    sae,
)

__all__ = ["reference", "sae"]


def test_features_are_changed_together_from_one_encoding(
    laboratory: Laboratory, reference: Reference, sae: Sae
) -> None:
    steering = [
        FEATURE | {"operation": "clamp", "value": 3.0},
        ALONG | {"operation": "project_out"},
        FEATURE | {"index": 8, "operation": "ablate"},
        FEATURE | {"index": 9, "value": 2.0},
    ]
    result = generate(laboratory, sae, steering=steering, strengths=[2.0])

    def change(x: Tensor) -> Tensor:
        d = sae.W_dec.double()
        changed = x + (6 - feature_of(sae, x, 7)) * d[7] - feature_of(sae, x, 8) * d[8] + 4 * d[9]
        return projected_out(changed)

    for prompt in result.prompts:
        tokens, log_probs = greedy(reference, prompt.tokens.ids, {("resid_post", LAYER): from_first(prompt, change)})
        assert prompt.steered[0].tokens == tokens
        assert_scores(prompt.steered[0].steered, log_probs)
    assert [item.amount for item in result.steering] == [3.0, None, None, 2.0]


def test_features_are_projected_out_together_beside_what_else_changes(
    laboratory: Laboratory, reference: Reference, sae: Sae
) -> None:
    out = [FEATURE | {"index": index, "operation": "project_out"} for index in (7, 8, 7)]
    steering = [*out, FEATURE | {"value": 1.5}, FEATURE | {"index": 9, "operation": "ablate"}]
    result = generate(laboratory, sae, steering=steering, strengths=[2.0])
    d = sae.W_dec.double()

    def change(x: Tensor) -> Tensor:
        inside: Tensor = torch.linalg.lstsq(d[[7, 8]].T, x.T).solution
        return x - inside.T @ d[[7, 8]] + 3 * d[7] - feature_of(sae, x, 9) * d[9]

    for prompt in result.prompts:
        tokens, log_probs = greedy(reference, prompt.tokens.ids, {("resid_post", LAYER): from_first(prompt, change)})
        assert prompt.steered[0].tokens == tokens
        assert_scores(prompt.steered[0].steered, log_probs)
    assert [item.amount for item in result.steering] == [None, None, None, 1.5, None]


def test_clamping_a_direction_to_nothing_is_projecting_it_out(laboratory: Laboratory) -> None:
    clamped_to_0 = generate(laboratory, steering=[ALONG | {"operation": "clamp", "value": 0.0}])
    out = generate(laboratory, steering=[ALONG | {"operation": "project_out"}])
    for one, other in zip(clamped_to_0.prompts, out.prompts, strict=True):
        assert one.steered[0].tokens == other.steered[0].tokens
        assert other.steered[0].steered is not None
        assert_scores(one.steered[0].steered, other.steered[0].steered.log_probs)


@pytest.mark.parametrize("operation", ["clamp", "project_out"])
def test_tokens_over_the_norm_threshold_are_flagged_and_left_alone(
    laboratory: Laboratory, reference: Reference, operation: str
) -> None:
    unsteered = generate(laboratory)
    place = ("resid_post", LAYER)
    norms = [reference.activations(prompt.tokens.ids, [place])[place].norm(dim=-1) for prompt in unsteered.prompts]
    threshold = float(torch.cat(norms).median()) + 1e-3
    sae = make_sae(norm_threshold=threshold)
    value = {"value": 5.0} if operation == "clamp" else {}
    result = generate(laboratory, sae, steering=[FEATURE | {"operation": operation} | value])

    def change(x: Tensor) -> Tensor:
        within = x.norm(dim=-1, keepdim=True) <= threshold
        d = sae.W_dec[7].double()
        return torch.where(within, clamped(sae, 7, 5.0)(x) if value else projected_out(x, d), x)

    for prompt, lengths in zip(result.prompts, norms, strict=True):
        assert prompt.over_norm == tuple((lengths > threshold).nonzero()[:, 0].tolist())
        changes = {place: from_first(prompt, change)}
        assert prompt.steered[0].tokens == greedy(reference, prompt.tokens.ids, changes)[0]
    assert any(prompt.over_norm for prompt in result.prompts)


def test_in_mean_norms_what_is_added_is_as_long_as_the_activations_are(
    laboratory: Laboratory, reference: Reference, sae: Sae
) -> None:
    steering = [
        ALONG | {"value": 0.5},
        FEATURE,
        FEATURE | {"index": 8, "operation": "clamp"},
        ALONG | {"operation": "clamp", "value": 0.5},
    ]
    result = generate(laboratory, sae, steering=steering, strengths=[0.3], unit="mean_norm", log_probs=False)
    place = ("resid_post", LAYER)
    norms = [reference.activations(prompt.tokens.ids, [place])[place][1:].norm(dim=-1) for prompt in result.prompts]
    mean = float(torch.cat(norms).mean())
    lengths = [float(DIRECTION.norm()), *(float(sae.W_dec[index].norm()) for index in (7, 8))]
    assert [item.mean_norm for item in result.steering] == pytest.approx([mean] * 4, rel=1e-5)
    amounts = [item.amount for item in result.steering]
    assert amounts == pytest.approx(
        [0.5 * mean / lengths[0], mean / lengths[1], mean / lengths[2], 0.5 * mean], rel=1e-5
    )
