import json
from typing import Any

import pytest
from pydantic import TypeAdapter

from services.catalogue.catalogue import Catalogue
from services.catalogue.resolve import Limits, resolve, tokenize
from services.contracts.errors import ErrorCode, InvalidSpec, NotFound, Violation
from services.contracts.inputs import Inputs
from services.contracts.job import JobSpec
from services.contracts.sae import SaeFacts
from services.contracts.site import SiteName
from tests.families import CONTEXT, HEADS, LAYERS

SPEC: TypeAdapter[JobSpec] = TypeAdapter(JobSpec)

CLEAN = "When John and Mary went to the shops, John gave the bag to"
PAIR = {"clean": CLEAN, "corrupted": CLEAN.replace(", John", ", Mary"), "answer": " Mary", "foil": " John"}


def patching(method: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    return {
        "kind": "patching",
        "model": "tiny-llama",
        "method": {"type": "activation_patching", "site": "resid_pre", **(method or {})},
        "pairs": [PAIR],
        **changes,
    }


def resolved(body: dict[str, Any], catalogue: Catalogue, limits: Limits | None = None) -> Inputs:
    return resolve(SPEC.validate_json(json.dumps(body)), catalogue, limits or Limits()).inputs


def refused(body: dict[str, Any], catalogue: Catalogue, limits: Limits | None = None) -> Violation:
    """The only violation of `body`."""
    with pytest.raises(InvalidSpec) as error:
        resolved(body, catalogue, limits)
    (violation,) = error.value.violations
    return violation


def test_a_pair_is_read_by_the_tokenizers_own_bos_rule_unless_the_request_has_one(tiny: Catalogue) -> None:
    own = resolved(patching(), tiny)
    assert own.bos == "tokenizer"
    assert own.pairs[0].clean.bos_prepended
    asked = resolved(patching(bos=False), tiny)
    assert asked.bos == "request"
    assert not asked.pairs[0].clean.bos_prepended
    assert resolved(patching(model="tiny-gpt2"), tiny).pairs[0].clean.ids == asked.pairs[0].clean.ids


def test_positions_become_indices_and_differences_are_found(tiny: Catalogue) -> None:
    pair = PAIR | {"positions": {"END": -1, "S2": -5}}
    inputs = resolved(patching(pairs=[pair]), tiny)
    (found,) = inputs.pairs
    assert found.metric_position == len(found.clean.ids) - 1
    last = len(found.clean.ids) - 1
    assert found.positions == {"END": last, "S2": last - 4}
    assert found.clean.strings[last - 4] == " John"
    assert found.differing == (last - 4,)


@pytest.mark.parametrize(
    ("body", "pointer", "code", "message"),
    [
        (patching(model="gpt-5"), "/model", ErrorCode.UNKNOWN_MODEL, "served are tiny-gpt2, tiny-llama"),
        (patching({"layers": [0, 3]}), "/method/layers/1", ErrorCode.UNKNOWN_LAYER, f"layers 0..{LAYERS - 1}"),
        (
            patching({"site": "z", "heads": [4]}),
            "/method/heads/0",
            ErrorCode.UNKNOWN_HEAD,
            f"heads 0..{HEADS - 1}",
        ),
        (patching({"heads": [0]}), "/method/heads", ErrorCode.UNKNOWN_HEAD, "resid_pre has no heads"),
        (patching({"positions": [40]}), "/method/positions/0", ErrorCode.UNKNOWN_POSITION, "position 40"),
        (patching({"positions": ["S2"]}), "/method/positions/0", ErrorCode.UNKNOWN_POSITION, "called 'S2' in pair 0"),
        (
            patching(metric={"type": "logit_diff", "position": -40}),
            "/metric/position",
            ErrorCode.UNKNOWN_POSITION,
            "position -40 does not exist",
        ),
        (patching(pairs=[PAIR | {"corrupted": " Mary"}]), "/pairs/0", ErrorCode.UNEQUAL_LENGTHS, "['<bos>', ' Mary']"),
        (patching(pairs=[PAIR | {"answer": " Mary gave"}]), "/pairs/0/answer", ErrorCode.INVALID_ANSWER, "2 tokens"),
        (patching(pairs=[PAIR | {"answer": 320}]), "/pairs/0/answer", ErrorCode.UNKNOWN_TOKEN, "0 to 319"),
        (patching(pairs=[PAIR | {"foil": None}]), "/pairs/0", ErrorCode.INVALID_ANSWER, "needs 'foil'"),
        (patching(pairs=[PAIR | {"foil": " Mary"}]), "/pairs/0/foil", ErrorCode.INVALID_ANSWER, "same token"),
        (
            patching(metric={"type": "prob_diff", "answers": [" Mary", " John"], "foils": [" John"]}),
            "/metric/foils",
            ErrorCode.INVALID_ANSWER,
            "both sets",
        ),
        (
            {"kind": "features", "model": "tiny-llama", "sae": "none", "prompts": ["Mary"]},
            "/sae",
            ErrorCode.UNKNOWN_SAE,
            "none is served",
        ),
    ],
)
def test_what_cannot_run_is_refused_with_a_pointer(
    tiny: Catalogue, body: dict[str, Any], pointer: str, code: ErrorCode, message: str
) -> None:
    violation = refused(body, tiny)
    assert (violation.pointer, violation.code) == (pointer, code)
    assert message in violation.message


def test_a_prompt_beyond_the_context_is_refused(tiny: Catalogue) -> None:
    body = {
        "kind": "attribution",
        "model": "tiny-llama",
        "method": {"type": "direct_logit_attribution"},
        "examples": [{"prompt": {"type": "tokens", "tokens": [5] * (CONTEXT + 1)}, "answer": 5, "foil": 6}],
    }
    violation = refused(body, tiny)
    assert violation.pointer == "/examples/0/prompt"
    assert violation.message == f"the prompt has {CONTEXT + 1} tokens: tiny-llama reads at most {CONTEXT}"


def test_a_job_with_too_many_tokens_is_refused_with_the_limit(tiny: Catalogue) -> None:
    violation = refused(patching(), tiny, Limits(tokens=20))
    assert violation.code is ErrorCode.JOB_TOO_LARGE
    assert "may have 20" in violation.message


def test_a_sweep_over_positions_of_unequal_pairs_asks_for_names(tiny: Catalogue) -> None:
    longer = {name: f"So {text}" if name in ("clean", "corrupted") else text for name, text in PAIR.items()}
    assert refused(patching(pairs=[PAIR, longer]), tiny).pointer == "/method/positions"
    named = [pair | {"positions": {"END": -1}} for pair in (PAIR, longer)]
    assert len(resolved(patching({"positions": ["END"]}, pairs=named), tiny).pairs) == 2
    assert len(resolved(patching({"site": "z"}, pairs=[PAIR, longer]), tiny).pairs) == 2


def test_every_violation_is_reported_at_once(tiny: Catalogue) -> None:
    body = patching({"layers": [9], "positions": [99]}, pairs=[PAIR | {"answer": " Mary gave"}, PAIR | {"foil": None}])
    with pytest.raises(InvalidSpec) as error:
        resolved(body, tiny)
    assert {violation.pointer for violation in error.value.violations} == {
        "/method/layers/0",
        "/method/positions/0",
        "/pairs/0/answer",
        "/pairs/1",
    }


SAE = SaeFacts(
    id="sae",
    model="tiny-llama",
    architecture="topk",
    site=SiteName.RESID_POST,
    layer=1,
    d_model=32,
    features=64,
    k=4,
    bos=False,
    norm_threshold=None,
    sha256="0" * 64,
)
EXAMPLES = {"examples": [{"prompt": CLEAN, "answer": " Mary", "foil": " John"}]}
PAIRS = {"pairs": [PAIR]}
STEERED = {"type": "feature", "sae": "sae", "index": 0, "operation": "add", "value": 1.0}


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"kind": "patching", "method": {"type": "feature_patching", "sae": "sae"}, **PAIRS}, "/method/sae"),
        ({"kind": "ablation", "method": {"type": "feature_ablation", "sae": "sae"}, **EXAMPLES}, "/method/sae"),
        ({"kind": "attribution", "method": {"type": "feature_attribution", "sae": "sae"}, **PAIRS}, "/method/sae"),
        ({"kind": "generation", "prompts": [CLEAN], "steering": [STEERED]}, "/steering/0/sae"),
    ],
)
def test_features_of_a_site_that_can_only_be_read_are_not_changed(
    tiny: Catalogue, body: dict[str, Any], pointer: str
) -> None:
    facts = tiny.model("tiny-llama")
    sites = tuple(
        site.model_copy(update={"writable": False, "reason": "it is read only"})
        if site.name is SiteName.MLP_OUT
        else site
        for site in facts.sites
    )
    models = {"tiny-llama": facts.model_copy(update={"sites": sites})}
    served = Catalogue(tiny.home, models, {"sae": SAE.model_copy(update={"site": SiteName.MLP_OUT})})
    violation = refused({"model": "tiny-llama", **body}, served)
    assert (violation.pointer, violation.code) == (pointer, ErrorCode.UNKNOWN_SITE)
    read = {"type": "direct_logit_attribution", "sae": "sae"}
    assert resolved({"kind": "attribution", "model": "tiny-llama", "method": read, **EXAMPLES}, served).examples


@pytest.mark.parametrize("positions", [[0, 0, 1], ["END", -1], ["END", "END"]])
def test_features_positions_that_are_one_are_refused_once_for_all_pairs(tiny: Catalogue, positions: list[Any]) -> None:
    served = Catalogue(tiny.home, tiny.models, {"sae": SAE})
    method = {"type": "feature_patching", "sae": "sae", "positions": positions}
    pairs = [PAIR | {"positions": {"END": -1}}] * 100
    violation = refused(patching(method, pairs=pairs) | {"method": method}, served)
    assert (violation.pointer, violation.code) == ("/method/positions", ErrorCode.UNKNOWN_POSITION)
    assert "two of these positions are the same one" in violation.message


def test_the_bos_rule_of_an_sae_comes_before_the_tokenizers(tiny: Catalogue) -> None:
    served = Catalogue(tiny.home, tiny.models, {"sae": SAE})
    body = {"kind": "features", "model": "tiny-llama", "sae": "sae", "prompts": ["Mary"]}
    inputs = resolved(body, served)
    assert inputs.bos == "sae"
    assert not inputs.prompts[0].bos_prepended
    assert refused(body | {"features": [64]}, served).message == "feature 64 does not exist: sae has features 0..63"
    assert refused(body | {"model": "tiny-gpt2"}, served).code is ErrorCode.SAE_MISMATCH


def test_tokenizing_answers_as_a_job_would_read_it(tiny: Catalogue) -> None:
    assert tokenize(tiny, "tiny-llama", "Mary", None).bos_prepended
    with pytest.raises(InvalidSpec):
        tokenize(tiny, "tiny-llama", " Mary" * (CONTEXT + 1), None)
    with pytest.raises(NotFound):
        tokenize(tiny, "gpt-5", "Mary", None)
