"""From a specification to the inputs a worker computes on: tokenise, and refuse what cannot run.

1. look up the model (and the SAE), and let the specification check itself against their facts;
2. decide the BOS rule, tokenise every prompt, example or pair;
3. turn answers into token ids and positions into indices;
4. refuse all violations at once, each with a pointer into the body;
5. estimate what the job costs, and refuse what is over the limits.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from services.catalogue.catalogue import Catalogue
from services.catalogue.cost import Cost, estimate
from services.catalogue.reader import BosRule, PromptReader
from services.contracts.errors import ErrorCode, InvalidSpec, LensdError, Violation
from services.contracts.inputs import Inputs
from services.contracts.job import JobSpec
from services.contracts.model import ModelFacts
from services.contracts.place import site_violations, width_of
from services.contracts.prompt import Prompt
from services.contracts.result import PromptTokens
from services.contracts.sae import SaeFacts
from services.contracts.spec import Asked


@dataclass(frozen=True)
class Limits:
    """What one job may ask for."""

    tokens: int = 200_000
    token_layers: int = 50_000_000
    output_bytes: int = 64 * 2**20

    def within(self, token_layers: int | None) -> "Limits":
        """The same with no more work than `token_layers`: what is over a whole day's quota never fits, any day."""
        return self if token_layers is None else replace(self, token_layers=min(self.token_layers, token_layers))


@dataclass(frozen=True)
class Resolved:
    """A job that can run: what it computes on, and what that costs."""

    inputs: Inputs
    cost: Cost


def resolve(spec: JobSpec, catalogue: Catalogue, limits: Limits) -> Resolved:
    """What `spec` asks for, tokenised and estimated; raises InvalidSpec with everything that is wrong with it."""
    reader = _open_reader(spec, catalogue)
    inputs = _read(spec, reader)
    if _is_whole(inputs, spec.asked()):
        reader.refuse_all(spec.input_violations(inputs))
    # An estimate takes time by the number of tokens, so these are counted first.
    _refuse_over(limits.tokens, inputs.tokens(), "tokens", reader)
    reader.raise_violations()
    sae_id = spec.sae_id()
    cost = estimate(spec, inputs, catalogue.model(spec.model), catalogue.sae(sae_id) if sae_id else None)
    minutes = cost.token_layers / max(1.0, reader.facts.token_layers_per_second) / 60
    work = f"token-layers of work (about {minutes:.0f} minutes)"
    _refuse_over(limits.token_layers, cost.token_layers, work, reader)
    _refuse_over(limits.output_bytes, cost.output_bytes, "bytes of result", reader)
    reader.raise_violations()
    return Resolved(inputs, cost)


def _refuse_over(allowed: int, asked: int, what: str, reader: PromptReader) -> None:
    if asked > allowed:
        instead = "send fewer or shorter prompts, or sweep fewer layers and positions, in several jobs"
        reader.refuse("", ErrorCode.JOB_TOO_LARGE, f"the job has {asked} {what}, and may have {allowed}: {instead}")


def tokenize(catalogue: Catalogue, model_id: str, prompt: Prompt, bos: bool | None) -> PromptTokens:
    """A prompt as a job would read it; raises InvalidSpec or NotFound."""
    facts = catalogue.model(model_id)
    reader = PromptReader(facts, catalogue.tokenizer(model_id), *_bos_rule(bos, None, facts))
    tokens = reader.prompt(prompt, "/prompt")
    reader.raise_violations()
    assert tokens is not None
    return tokens


def _read(spec: JobSpec, reader: PromptReader) -> Inputs:
    """Everything that `spec` asks to be read; what could not be read is missing, and among the reader's violations."""
    asked = spec.asked()
    prompts = [reader.prompt(prompt, f"/prompts/{index}") for index, prompt in enumerate(asked.prompts)]
    references = [reader.prompt(prompt, pointer) for pointer, prompt in asked.references.items()]
    metric = asked.metric
    examples = [reader.example(item, metric, f"/examples/{index}") for index, item in enumerate(asked.examples)]
    pairs = [reader.pair(item, metric, f"/pairs/{index}") for index, item in enumerate(asked.pairs)]
    answers, foils = reader.sets(
        metric,
        [(item.prompt, read.prompt) for item, read in zip(asked.examples, examples, strict=True) if read is not None]
        + [(item.clean, read.clean) for item, read in zip(asked.pairs, pairs, strict=True) if read is not None],
    )
    return Inputs(
        prompts=tuple(prompt for prompt in prompts if prompt is not None),
        examples=tuple(example for example in examples if example is not None),
        pairs=tuple(pair for pair in pairs if pair is not None),
        references=tuple(reference for reference in references if reference is not None),
        answers=answers,
        foils=foils,
        stops=reader.stops(asked.stops, "/stop"),
        bos=reader.rule,
    )


def _is_whole(inputs: Inputs, asked: Asked) -> bool:
    """Whether everything that was asked for could be read."""
    read = (inputs.prompts, inputs.references, inputs.examples, inputs.pairs)
    return tuple(map(len, read)) == tuple(map(len, (asked.prompts, asked.references, asked.examples, asked.pairs)))


def _open_reader(spec: JobSpec, catalogue: Catalogue) -> PromptReader:
    facts = _looked_up("/model", lambda: catalogue.model(spec.model))
    sae: SaeFacts | None = None
    sae_id = spec.sae_id()
    if sae_id is not None:
        sae = _looked_up(spec.sae_pointer(), lambda: catalogue.sae(sae_id))
    reader = PromptReader(facts, catalogue.tokenizer(spec.model), *_bos_rule(spec.bos, sae, facts))
    reader.refuse_all(spec.violations(facts))
    if sae is not None:
        reader.refuse_all(spec.sae_violations(sae))
        reader.refuse_all(_unfit(sae, facts, spec.sae_pointer(), write=spec.writes_features()))
    return reader


def _unfit(sae: SaeFacts, facts: ModelFacts, pointer: str, *, write: bool) -> Iterator[Violation]:
    """An SAE of another model, or whose width or place is not the model's; `write` for features that change."""
    if sae.model != facts.id:
        message = f"{sae.id} was trained on {sae.model}, not on {facts.id}"
        yield Violation(pointer, ErrorCode.SAE_MISMATCH, message)
        return
    width, layers = width_of(sae.site, facts), f"and {facts.id} has layers 0..{facts.layers - 1}"
    message = ""
    if sae.d_model != width:
        message = f"{sae.id} reads {sae.d_model} dimensions, and {facts.id} has {width}"
    elif sae.layer >= facts.layers:
        message = f"{sae.id} reads layer {sae.layer}, {layers}"
    elif sae.output is not None and sae.output.width != facts.d_model:
        message = f"{sae.id} writes {sae.output.width} dimensions, and {facts.id} has {facts.d_model}"
    elif sae.output is not None and sae.output.layer >= facts.layers:
        message = f"{sae.id} writes layer {sae.output.layer}, {layers}"
    if message:
        yield Violation(pointer, ErrorCode.SAE_MISMATCH, f"{message}: it was made for another model")
    yield from site_violations(sae.site, facts, pointer, write=write)
    if sae.output is not None:
        yield from site_violations(sae.output.site, facts, pointer, write=False)


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
