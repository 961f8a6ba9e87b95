"""From a specification to the inputs a worker computes on: tokenise, and refuse what cannot run.

1. look up the model (and the SAE), and let the specification check itself against their facts;
2. decide the BOS rule, tokenise every prompt, example or pair;
3. turn answers into token ids and positions into indices;
4. refuse all violations at once, each with a pointer into the body;
5. estimate what the job costs, and refuse what is over the limits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from services.catalogue.catalogue import Catalogue
from services.catalogue.cost import Cost, estimate
from services.catalogue.reader import BosRule, PromptReader
from services.contracts.attribution import AttributionSpec
from services.contracts.errors import ErrorCode, InvalidSpec, LensdError, Violation
from services.contracts.features import FeaturesSpec
from services.contracts.inputs import Inputs
from services.contracts.job import JobSpec
from services.contracts.model import ModelFacts
from services.contracts.patching import PatchingSpec
from services.contracts.prompt import Prompt
from services.contracts.result import PromptTokens
from services.contracts.sae import SaeFacts


@dataclass(frozen=True)
class Limits:
    """What one job may ask for."""

    tokens: int = 200_000
    token_layers: int = 50_000_000
    output_bytes: int = 64 * 2**20


@dataclass(frozen=True)
class Resolved:
    """A job that can run: what it computes on, and what that costs."""

    inputs: Inputs
    cost: Cost


def resolve(spec: JobSpec, catalogue: Catalogue, limits: Limits) -> Resolved:
    """What `spec` asks for, tokenised and estimated; raises InvalidSpec with everything that is wrong with it."""
    reader = _open_reader(spec, catalogue)
    match spec:
        case PatchingSpec():
            inputs = _resolve_patching(spec, reader)
        case AttributionSpec():
            inputs = _resolve_attribution(spec, reader)
        case FeaturesSpec():
            inputs = _resolve_features(spec, reader)
    reader.raise_violations()
    sae = catalogue.sae(spec.sae) if isinstance(spec, FeaturesSpec) else None
    cost = estimate(spec, inputs, catalogue.model(spec.model), sae)
    _refuse_too_large(inputs, cost, limits, reader)
    return Resolved(inputs, cost)


def _refuse_too_large(inputs: Inputs, cost: Cost, limits: Limits, reader: PromptReader) -> None:
    minutes = cost.token_layers / max(1.0, reader.facts.token_layers_per_second) / 60
    instead = "send fewer or shorter prompts, or sweep fewer layers and positions, in several jobs"
    for what, asked, allowed in (
        ("tokens", inputs.tokens(), limits.tokens),
        (f"token-layers of work (about {minutes:.0f} minutes)", cost.token_layers, limits.token_layers),
        ("bytes of result", cost.output_bytes, limits.output_bytes),
    ):
        if asked > allowed:
            message = f"the job has {asked} {what}, and may have {allowed}: {instead}"
            reader.refuse("", ErrorCode.JOB_TOO_LARGE, message)
    reader.raise_violations()


def tokenize(catalogue: Catalogue, model_id: str, prompt: Prompt, bos: bool | None) -> PromptTokens:
    """A prompt as a job would read it; raises InvalidSpec or NotFound."""
    facts = catalogue.model(model_id)
    reader = PromptReader(facts, catalogue.tokenizer(model_id), *_bos_rule(bos, None, facts))
    tokens = reader.prompt(prompt, "/prompt")
    reader.raise_violations()
    assert tokens is not None
    return tokens


def _resolve_patching(spec: PatchingSpec, reader: PromptReader) -> Inputs:
    pairs = [reader.pair(pair, spec.metric, f"/pairs/{index}") for index, pair in enumerate(spec.pairs)]
    good = tuple(pair for pair in pairs if pair is not None)
    if len(good) == len(pairs):
        reader.refuse_all(spec.position_violations(good))
    answers, foils = reader.sets(
        spec.metric, [(pair.clean, tokens) for pair, tokens in zip(spec.pairs, pairs, strict=True)]
    )
    return Inputs(pairs=good, answers=answers, foils=foils, bos=reader.rule)


def _resolve_attribution(spec: AttributionSpec, reader: PromptReader) -> Inputs:
    examples = [
        reader.example(example, spec.metric, f"/examples/{index}") for index, example in enumerate(spec.examples)
    ]
    return Inputs(examples=tuple(example for example in examples if example is not None), bos=reader.rule)


def _resolve_features(spec: FeaturesSpec, reader: PromptReader) -> Inputs:
    prompts = [reader.prompt(prompt, f"/prompts/{index}") for index, prompt in enumerate(spec.prompts)]
    return Inputs(prompts=tuple(prompt for prompt in prompts if prompt is not None), bos=reader.rule)


def _open_reader(spec: JobSpec, catalogue: Catalogue) -> PromptReader:
    facts = _looked_up("/model", lambda: catalogue.model(spec.model))
    sae: SaeFacts | None = None
    if isinstance(spec, FeaturesSpec):
        sae_id = spec.sae
        sae = _looked_up("/sae", lambda: catalogue.sae(sae_id))
        violations = spec.violations(sae)
    else:
        violations = spec.violations(facts)
    reader = PromptReader(facts, catalogue.tokenizer(spec.model), *_bos_rule(spec.bos, sae, facts))
    reader.refuse_all(violations)
    return reader


Facts = TypeVar("Facts", ModelFacts, SaeFacts)


def _looked_up(pointer: str, look_up: Callable[[], Facts]) -> Facts:
    try:
        return look_up()
    except LensdError as error:
        raise InvalidSpec([Violation(pointer, error.code, error.message)]) from error


def _bos_rule(request: bool | None, sae: SaeFacts | None, facts: ModelFacts) -> tuple[bool, BosRule]:
    if request is not None:
        return request, "request"
    if sae is not None and sae.bos is not None:
        return sae.bos, "sae"
    return facts.prepends_bos, "tokenizer"
