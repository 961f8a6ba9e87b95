"""SAE evaluation against plain transformers in float64, the SAE's arithmetic written out by hand."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from services.catalogue.catalogue import Catalogue
from services.catalogue.resolve import Limits, resolve
from services.contracts.errors import ErrorCode, InvalidSpec
from services.contracts.sae_evaluation import SaeEvaluationResult, SaeFidelity
from services.contracts.tensor import InlineTensor
from services.engine.engine import Engine
from services.saes.sae import Sae, TopK
from tests.brute_force import Reference
from tests.services.methods.conftest import SPEC, Laboratory
from tests.services.methods.saes import in_use

FEATURES, K, LAYER = 64, 4, 1
PROMPTS = ["When John and Mary went to the shops", "The Eiffel Tower is in Paris"]


@pytest.fixture(scope="module")
def sae() -> Sae:
    generator = torch.Generator().manual_seed(3)
    return Sae(
        W_enc=torch.randn(32, FEATURES, generator=generator),
        b_enc=torch.randn(FEATURES, generator=generator),
        W_dec=torch.randn(FEATURES, 32, generator=generator) / 32**0.5,
        b_dec=torch.randn(32, generator=generator),
        activation=TopK(K),
        apply_b_dec_to_input=True,
        hook_name=f"blocks.{LAYER}.hook_resid_post",
        mean_activation=torch.randn(32, generator=generator),
    )


class Evaluated:
    """One job, with what the brute-force side needs of it."""

    def __init__(self, laboratory: Laboratory, engine: Engine, sae: Sae, **changes: Any) -> None:
        model, site = changes.pop("model", "tiny-llama"), changes.pop("site", "resid_post")
        layer = changes.pop("layer", LAYER)
        used = in_use(sae, model, site=site, layer=layer)
        served = Catalogue(laboratory.catalogue.home, laboratory.catalogue.models, {"sae": used.facts})
        body = {"kind": "sae_evaluation", "model": model, "sae": "sae", "prompts": PROMPTS, **changes}
        self.resolved = resolve(SPEC.validate_json(json.dumps(body)), served, Limits())
        result = Laboratory(engine, served).run(body, used)
        assert isinstance(result, SaeEvaluationResult)
        self.result, self.place = result, (site, layer)
        self.reference = Reference(laboratory.folder(model))


def brute_force(evaluated: Evaluated, sae: Sae, *, filtered: bool) -> dict[str, float]:
    """Every figure from whole float64 passes."""
    losses: dict[str, list[Tensor]] = {name: [] for name in ("clean", "sae", "zero", "mean")}
    divergences: dict[str, list[Tensor]] = {name: [] for name in losses}
    measured: list[Tensor] = []
    rebuilt: list[Tensor] = []
    fired: list[Tensor] = []
    assert sae.mean_activation is not None
    for prompt in evaluated.resolved.inputs.prompts:
        x = evaluated.reference.activations(prompt.ids, [evaluated.place])[evaluated.place]
        pre = (x - sae.b_dec.double()) @ sae.W_enc.double() + sae.b_enc.double()
        features = torch.where(pre >= pre.sort(1, descending=True).values[:, K - 1 : K], pre.clamp(min=0), 0.0)
        decoded = features @ sae.W_dec.double() + sae.b_dec.double()
        kept = torch.ones(len(x), dtype=torch.bool)
        if filtered and sae.norm_threshold is not None:
            kept = x.norm(dim=1) <= sae.norm_threshold
        measured.append(x[kept])
        rebuilt.append(decoded[kept])
        fired.append(features[kept] > 0)
        values = {"clean": x, "sae": decoded, "zero": torch.zeros_like(x), "mean": sae.mean_activation.double()}
        clean = evaluated.reference.logits(prompt.ids).log_softmax(-1)
        for name, value in values.items():
            spliced = torch.where(kept[:, None], value, x)
            logits = evaluated.reference.logits(prompt.ids, {evaluated.place: partial(_replaced, spliced)})
            own = logits.log_softmax(-1)
            losses[name].append(functional.nll_loss(own[:-1], torch.tensor(prompt.ids[1:]), reduction="none"))
            divergences[name].append((clean.exp() * (clean - own)).sum(-1))
    return {
        **{f"loss {name}": float(torch.cat(found).mean()) for name, found in losses.items()},
        **{f"kl {name}": float(torch.cat(found).mean()) for name, found in divergences.items()},
        **_reconstruction(torch.cat(measured), torch.cat(rebuilt), torch.cat(fired), sae.mean_activation.double()),
    }


def _replaced(new: Tensor, _: Tensor) -> Tensor:
    return new


def _reconstruction(x: Tensor, rebuilt: Tensor, fired: Tensor, mean: Tensor) -> dict[str, float]:
    error, density = (x - rebuilt).square(), fired.double().mean(0)
    return {
        "tokens": len(x),
        "l0": float(fired.sum(1).double().mean()),
        "mse": float(error.mean()),
        "cosine": float(functional.cosine_similarity(x, rebuilt, dim=1).mean()),
        "explained": float(1 - error.sum() / (x - mean).square().sum()),
        "explained by text": float(1 - error.sum() / (x - x.mean(0)).square().sum()),
        "dead": float((density == 0).double().mean()),
        "dense": float((density > 0.1).double().mean()),
    }


def assert_equal(found: SaeFidelity, clean: float, want: dict[str, float]) -> None:
    runs = {"sae": found.sae, "zero": found.zero_ablation, "mean": found.mean_ablation}
    figures = {
        "loss clean": clean,
        "kl clean": 0.0,
        **{f"loss {name}": run.cross_entropy for name, run in runs.items()},
        **{f"kl {name}": run.kl for name, run in runs.items()},
        "tokens": found.tokens,
        "l0": found.l0,
        "mse": found.mse,
        "cosine": found.cosine,
        "explained": found.explained_variance,
        "explained by text": found.explained_variance_text_mean,
        "dead": found.dead_fraction,
        "dense": found.dense_fraction,
    }
    assert figures == pytest.approx(want, rel=1e-4, abs=1e-5)


PLACES = [
    ("tiny-llama", "resid_post", 1),
    ("tiny-llama", "resid_post", -1),
    ("tiny-gpt2", "attn_out", 1),
    ("tiny-gpt-neox", "mlp_out", 1),
    ("tiny-gemma2", "resid_pre", 1),
]


@pytest.mark.parametrize("place", PLACES)
def test_every_figure_equals_the_brute_force_one(
    laboratory: Laboratory, engine: Engine, sae: Sae, place: tuple[str, str, int]
) -> None:
    model, site, layer = place
    layer %= laboratory.catalogue.model(model).layers
    plain = Evaluated(laboratory, engine, sae, model=model, site=site, layer=layer)
    norms = _norms(plain)
    threshold = float((norms.sort().values[-4] + norms.sort().values[-3]) / 2)
    limited = replace(sae, norm_threshold=threshold)
    evaluated = Evaluated(laboratory, engine, limited, model=model, site=site, layer=layer)
    result = evaluated.result
    assert result.tokens_over_norm == int((norms > threshold).sum()) > 0
    for found, filtered in ((result.with_norm_filter, True), (result.without_norm_filter, False)):
        assert found is not None
        assert_equal(found, result.cross_entropy, brute_force(evaluated, limited, filtered=filtered))


def _norms(evaluated: Evaluated) -> Tensor:
    prompts = evaluated.resolved.inputs.prompts
    found = [evaluated.reference.activations(prompt.ids, [evaluated.place])[evaluated.place] for prompt in prompts]
    norms: Tensor = torch.cat(found).norm(dim=1)
    return norms


@pytest.mark.parametrize("norm_filter", ["both", "off"])
@pytest.mark.parametrize("layer", [0, 1, -1])
def test_a_job_is_billed_what_was_estimated(
    laboratory: Laboratory, engine: Engine, sae: Sae, norm_filter: str, layer: int
) -> None:
    """Prompts of its own: the engine remembers the runs of others."""
    layer %= laboratory.catalogue.model("tiny-llama").layers
    prompts = [f"Prompt {norm_filter} of layer {layer}, and its {word}" for word in ("first", "second sentence")]
    limited = replace(sae, norm_threshold=6.0)
    evaluated = Evaluated(laboratory, engine, limited, layer=layer, prompts=prompts, norm_filter=norm_filter)
    billed = evaluated.result.usage.token_layers
    assert billed / evaluated.resolved.cost.token_layers == pytest.approx(1.0, abs=0.02)


def test_recovered_fractions_lie_between_the_ablation_and_the_clean_run(
    laboratory: Laboratory, engine: Engine, sae: Sae
) -> None:
    result = Evaluated(laboratory, engine, sae).result
    found = result.without_norm_filter
    assert found is not None
    for ablated, recovered in (
        (found.zero_ablation, found.cross_entropy_recovered.against_zero),
        (found.mean_ablation, found.cross_entropy_recovered.against_mean),
    ):
        change = ablated.cross_entropy - result.cross_entropy
        if recovered is None:
            assert abs(change) < 1e-3 * result.cross_entropy
            assert result.warnings
        else:
            assert recovered == pytest.approx((ablated.cross_entropy - found.sae.cross_entropy) / change)
    kl = found.kl_recovered.against_zero
    assert kl is None or kl == pytest.approx((found.zero_ablation.kl - found.sae.kl) / found.zero_ablation.kl)


def test_without_a_stored_mean_the_texts_own_takes_its_place(laboratory: Laboratory, engine: Engine, sae: Sae) -> None:
    evaluated = Evaluated(laboratory, engine, replace(sae, mean_activation=None))
    prompts = evaluated.resolved.inputs.prompts
    x = torch.cat([evaluated.reference.activations(p.ids, [evaluated.place])[evaluated.place] for p in prompts])
    own = replace(sae, mean_activation=x.mean(0).float())
    found = evaluated.result.without_norm_filter
    assert evaluated.result.mean == "text_mean"
    assert found is not None
    assert_equal(found, evaluated.result.cross_entropy, brute_force(evaluated, own, filtered=False))


def test_an_sae_that_scales_each_token_is_measured_in_the_activations_units(
    laboratory: Laboratory, engine: Engine, sae: Sae
) -> None:
    scaling = replace(sae, normalize_activations="layer_norm", norm_threshold=None)
    evaluated = Evaluated(laboratory, engine, scaling)
    found = evaluated.result.without_norm_filter
    assert found is not None
    x = torch.cat(
        [
            evaluated.reference.activations(prompt.ids, [evaluated.place])[evaluated.place]
            for prompt in evaluated.resolved.inputs.prompts
        ]
    )
    size, centre = x.std(dim=1, keepdim=True), x.mean(dim=1, keepdim=True)
    pre = ((x - centre) / (size + 1e-5) - sae.b_dec.double()) @ sae.W_enc.double() + sae.b_enc.double()
    features = torch.where(pre >= pre.sort(1, descending=True).values[:, K - 1 : K], pre.clamp(min=0), 0.0)
    rebuilt = (features @ sae.W_dec.double() + sae.b_dec.double()) * size + centre
    assert found.mse == pytest.approx(float((x - rebuilt).square().mean()), rel=1e-4)
    assert found.l0 == pytest.approx(float((features > 0).sum(1).double().mean()))


def test_densities_and_their_histogram_count_the_same_features(
    laboratory: Laboratory, engine: Engine, sae: Sae
) -> None:
    found = Evaluated(laboratory, engine, sae, densities=True).result.without_norm_filter
    assert found is not None
    assert isinstance(found.densities, InlineTensor)
    densities = found.densities.array()
    alive = densities[densities > 0]
    assert sum(found.density_histogram.counts) == len(alive)
    assert found.dead_fraction == pytest.approx(1 - len(alive) / FEATURES)
    edges = found.density_histogram.edges
    for (low, high), count in zip(pairwise(edges), found.density_histogram.counts, strict=True):
        within = (alive >= 10**low) & ((alive < 10**high) | (high == 0))
        assert int(within.sum()) == count


def test_a_text_of_tokens_over_the_norm_alone_leaves_the_runs_clean(
    laboratory: Laboratory, engine: Engine, sae: Sae
) -> None:
    result = Evaluated(laboratory, engine, replace(sae, norm_threshold=1e-6), norm_filter="on").result
    found = result.with_norm_filter
    assert result.without_norm_filter is None
    assert found is not None
    assert (found.tokens, found.l0, found.mse, found.explained_variance, found.dead_fraction) == (0, *[None] * 4)
    assert found.sae.cross_entropy == pytest.approx(result.cross_entropy, abs=1e-5)
    assert found.cross_entropy_recovered.against_zero is None


@pytest.mark.parametrize(
    ("changes", "pointer", "code"),
    [
        ({"norm_filter": "on"}, "/norm_filter", ErrorCode.SAE_MISMATCH),
        ({"prompts": [{"type": "tokens", "tokens": [1]}]}, "/prompts/0", ErrorCode.INVALID_PROMPT),
        ({"model": "tiny-gpt2"}, "/sae", ErrorCode.SAE_MISMATCH),
    ],
)
def test_what_cannot_be_evaluated_is_refused(
    laboratory: Laboratory, sae: Sae, changes: dict[str, Any], pointer: str, code: ErrorCode
) -> None:
    facts = in_use(sae, layer=LAYER).facts
    served = Catalogue(laboratory.catalogue.home, laboratory.catalogue.models, {"sae": facts})
    body = {"kind": "sae_evaluation", "model": "tiny-llama", "sae": "sae", "prompts": PROMPTS, **changes}
    with pytest.raises(InvalidSpec) as refused:
        resolve(SPEC.validate_json(json.dumps(body)), served, Limits())
    found: Sequence[tuple[str, ErrorCode]] = [(each.pointer, each.code) for each in refused.value.violations]
    assert (pointer, code) in found
