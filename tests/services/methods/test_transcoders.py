"""Transcoders of an MLP against plain float64 runs: they read before it, and their output is measured behind it."""

import json
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from services.catalogue.catalogue import Catalogue
from services.catalogue.resolve import Limits, Resolved, resolve
from services.contracts.errors import ErrorCode, InvalidSpec
from services.contracts.features import FeaturesResult
from services.contracts.sae_evaluation import SaeEvaluationResult
from services.methods.context import SaeInUse
from services.saes.sae import JumpRelu, Relu, Sae
from tests.brute_force import Reference
from tests.services.methods.attribution_patching import PAIR
from tests.services.methods.conftest import SPEC, Laboratory
from tests.services.methods.saes import in_use

FEATURES, LAYER, D_MODEL = 64, 1, 32
PROMPTS = ["When John and Mary went to the shops", "The Eiffel Tower is in Paris"]
MODELS = ("tiny-llama", "tiny-gpt2", "tiny-gemma2")


def made(*, skip: bool = True, jump: bool = False, model: str = "tiny-llama", **changes: Any) -> SaeInUse:
    """From the MLP's input to what the MLP adds."""
    generator = torch.Generator().manual_seed(3)
    values: dict[str, Any] = {
        "W_enc": torch.randn(D_MODEL, FEATURES, generator=generator) / 4,
        "b_enc": torch.randn(FEATURES, generator=generator) - 1,
        "W_dec": torch.randn(FEATURES, D_MODEL, generator=generator) / D_MODEL**0.5,
        "b_dec": torch.randn(D_MODEL, generator=generator),
        "activation": JumpRelu(torch.rand(FEATURES, generator=generator)) if jump else Relu(),
        "apply_b_dec_to_input": False,
        "hook_name": f"blocks.{LAYER}.mlp.hook_in",
        "hook_name_out": f"blocks.{LAYER}.hook_mlp_out",
        "W_skip": torch.randn(D_MODEL, D_MODEL, generator=generator) / 8 if skip else None,
    }
    sae = Sae(**{**values, **changes})
    return in_use(sae, model, site="resid_mid", layer=LAYER, writes=("mlp_out", LAYER), mlp_norm=True)


class Asked:
    """A job on one transcoder, resolved and run."""

    def __init__(self, laboratory: Laboratory, used: SaeInUse, **body: Any) -> None:
        self.laboratory, self.used, self.model = laboratory, used, used.facts.model
        self.served = Catalogue(laboratory.catalogue.home, laboratory.catalogue.models, {"sae": used.facts})
        self.body = {"model": self.model, **body}
        self.reference = Reference(laboratory.folder(self.model))

    def resolved(self) -> Resolved:
        return resolve(SPEC.validate_json(json.dumps(self.body)), self.served, Limits())

    def run(self) -> Any:
        return Laboratory(self.laboratory.engine, self.served).run(self.body, self.used)

    def read(self, tokens: Any) -> tuple[Tensor, Tensor]:
        """What the MLP reads and what it adds."""
        places = [("mlp_in", LAYER), ("mlp_out", LAYER)]
        found = self.reference.activations(tokens, places)
        return found[places[0]], found[places[1]]

    def features(self, x: Tensor) -> Tensor:
        sae = self.used.sae
        pre = x @ sae.W_enc.double() + sae.b_enc.double()
        least = sae.activation.threshold.double() if isinstance(sae.activation, JumpRelu) else 0.0
        return torch.where(pre > least, pre.relu(), 0.0)

    def output(self, x: Tensor) -> Tensor:
        sae = self.used.sae
        written: Tensor = self.features(x) @ sae.W_dec.double() + sae.b_dec.double()
        return written if sae.W_skip is None else written + x @ sae.W_skip.double().T


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("skip", "jump"), [(True, True), (False, False)])
def test_features_are_read_before_the_mlp_and_their_output_measured_behind_it(
    laboratory: Laboratory, model: str, skip: bool, jump: bool
) -> None:
    used, chosen = made(skip=skip, jump=jump, model=model), list(range(FEATURES))
    asked = Asked(laboratory, used, kind="features", sae="sae", prompts=PROMPTS, features=chosen, reconstruction=True)
    result = asked.run()
    assert isinstance(result, FeaturesResult)
    assert (result.site, result.layer, result.output) == ("resid_mid", LAYER, used.facts.output)
    for prompt in result.prompts:
        x, y = asked.read(prompt.tokens.ids)
        np.testing.assert_allclose(prompt.activations.array(), asked.features(x), atol=1e-4)  # type: ignore[union-attr]
        error = (y - asked.output(x)).square()
        found = prompt.reconstruction
        assert found is not None
        assert found.mse == pytest.approx(float(error.mean()), rel=1e-4)
        spread = (y - y.mean(0)).square().sum()
        assert found.explained_variance == pytest.approx(float(1 - error.sum() / spread), rel=1e-4)
    assert result.usage.token_layers == asked.resolved().cost.token_layers


def test_promoted_tokens_are_those_of_what_the_features_write(laboratory: Laboratory) -> None:
    used = made()
    asked = Asked(laboratory, used, kind="features", sae="sae", prompts=PROMPTS, promoted_logits=3)
    model = asked.reference.model
    for effect in asked.run().effects:
        with torch.no_grad():
            logits = model.lm_head.weight @ (used.sae.W_dec[effect.index].double() * model.model.norm.weight)
        assert [token.token_id for token in effect.promoted] == logits.topk(3).indices.tolist()


def test_a_job_runs_on_to_the_output_only_where_that_is_measured(laboratory: Laboratory) -> None:
    sae = made(hook_name="blocks.0.hook_resid_post", hook_name_out="blocks.2.hook_mlp_out").sae
    used = in_use(sae, site="resid_post", layer=0, writes=("mlp_out", 2))
    works = []
    for number, reconstruction in enumerate((False, True)):
        prompts = [f"{PROMPTS[0]} for the {number + 1}. time"]
        asked = Asked(
            laboratory, used, kind="features", sae="sae", prompts=prompts, features=[1], reconstruction=reconstruction
        )
        result = asked.run()
        assert result.usage.token_layers == asked.resolved().cost.token_layers
        works.append(result.usage.token_layers / len(result.prompts[0].tokens.ids))
    assert works == [1, 3]


def _replaced(new: Tensor, _: Tensor) -> Tensor:
    return new


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("filtered", [True, False])
def test_evaluation_puts_the_transcoders_output_in_the_mlps_place(
    laboratory: Laboratory, model: str, filtered: bool
) -> None:
    x, _ = Asked(laboratory, made(model=model)).read(list(range(5, 15)))
    threshold = float(x.norm(dim=1).median()) if filtered else None
    mean = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(1))
    used = made(model=model, norm_threshold=threshold, mean_activation=mean)
    prompts = [{"type": "tokens", "tokens": list(range(first, first + 10))} for first in (5, 20)]
    asked = Asked(laboratory, used, kind="sae_evaluation", sae="sae", prompts=prompts, bos=False)
    result = asked.run()
    assert isinstance(result, SaeEvaluationResult)
    found = result.with_norm_filter if filtered else result.without_norm_filter
    assert found is not None
    losses: dict[str, list[float]] = {"sae": [], "zero": [], "mean": []}
    errors, fired = [], []
    for prompt in prompts:
        tokens: Any = prompt["tokens"]
        x, y = asked.read(tokens)
        kept = x.norm(dim=1) <= (threshold or torch.inf)
        errors.append((y - asked.output(x))[kept].square())
        fired.append((asked.features(x)[kept] > 0).sum(1))
        for name, value in (("sae", asked.output(x)), ("zero", 0 * y), ("mean", mean.double().expand_as(y))):
            spliced = torch.where(kept[:, None], value, y)
            logits = asked.reference.logits(tokens, {("mlp_out", LAYER): partial(_replaced, spliced)})
            losses[name] += (-logits.log_softmax(-1)[range(9), tokens[1:]]).tolist()
    assert found.mse == pytest.approx(float(torch.cat(errors).mean()), rel=1e-4)
    assert found.l0 == pytest.approx(float(torch.cat(fired).double().mean()))
    for name, run in (("sae", found.sae), ("zero", found.zero_ablation), ("mean", found.mean_ablation)):
        assert run.cross_entropy == pytest.approx(float(np.mean(losses[name])), abs=1e-4)


@pytest.mark.parametrize(
    ("reads", "writes"),
    [
        (("resid_mid", 1), ("mlp_out", 1)),
        (("resid_post", 0), ("mlp_out", 2)),
        (("resid_pre", 1), ("resid_post", 1)),
    ],
)
def test_an_evaluation_is_billed_what_was_estimated(
    laboratory: Laboratory, reads: tuple[str, int], writes: tuple[str, int]
) -> None:
    used = in_use(made(mean_activation=torch.zeros(D_MODEL)).sae, site=reads[0], layer=reads[1], writes=writes)
    prompts = [f"From {reads} to {writes}, and its {word}" for word in ("first", "second sentence")]
    asked = Asked(laboratory, used, kind="sae_evaluation", sae="sae", prompts=prompts)
    billed, estimated = asked.run().usage.token_layers, asked.resolved().cost.token_layers
    assert billed / estimated == pytest.approx(1.0, abs=0.02)


STEERED = {
    "kind": "generation",
    "prompts": PROMPTS,
    "max_new_tokens": 2,
    "steering": [{"type": "feature", "sae": "sae", "index": 1}],
}
ATTRIBUTED = {"kind": "attribution", "method": {"type": "feature_attribution", "sae": "sae"}, "pairs": [PAIR]}


EXAMPLE = {"prompt": PAIR["clean"], "answer": PAIR["answer"], "foil": PAIR["foil"]}
PATCHED = {"kind": "patching", "method": {"type": "feature_patching", "sae": "sae"}, "pairs": [PAIR]}
ABLATED = {"kind": "ablation", "method": {"type": "feature_ablation", "sae": "sae"}, "examples": [EXAMPLE]}
SPLIT = {"kind": "attribution", "method": {"type": "direct_logit_attribution", "sae": "sae"}, "examples": [EXAMPLE]}


@pytest.mark.parametrize(
    ("body", "pointer"),
    [(STEERED, "/steering/0/sae"), *((body, "/method/sae") for body in (ATTRIBUTED, PATCHED, ABLATED, SPLIT))],
)
def test_what_takes_features_for_parts_of_what_is_read_is_refused_before_the_queue(
    laboratory: Laboratory, body: dict[str, Any], pointer: str
) -> None:
    with pytest.raises(InvalidSpec) as refused:
        Asked(laboratory, made(), **body).resolved()
    (violation,) = refused.value.violations
    assert (violation.pointer, violation.code) == (pointer, ErrorCode.SAE_MISMATCH)
    assert "is a transcoder: it reads resid_mid of layer 1 and writes mlp_out of layer 1" in violation.message


@pytest.mark.parametrize(
    ("writes", "width", "message"),
    [
        (("mlp_out", 3), D_MODEL, "writes layer 3, and tiny-llama has layers 0..2"),
        (("mlp_out", 2), 33, "writes 33 dimensions, and tiny-llama has 32"),
    ],
)
def test_an_output_that_the_model_does_not_have_is_refused_before_the_queue(
    laboratory: Laboratory, writes: tuple[str, int], width: int, message: str
) -> None:
    sae = made(skip=False, W_dec=torch.zeros(FEATURES, width), b_dec=torch.zeros(width)).sae
    used = in_use(sae, site="resid_mid", layer=LAYER, writes=writes)
    with pytest.raises(InvalidSpec) as refused:
        Asked(laboratory, used, kind="features", sae="sae", prompts=PROMPTS).resolved()
    (violation,) = refused.value.violations
    assert violation.code == ErrorCode.SAE_MISMATCH
    assert message in violation.message
