"""Generation, by itself and steered by features and directions (Turner et al. 2023, arXiv:2308.10248; clamping as in
Templeton et al. 2024, "Scaling Monosemanticity"; projecting out as in Arditi et al. 2024, arXiv:2406.11717).

1. go on from every prompt without steering, and at every strength with it; all texts at once, so that they share
   batches; every new token is chosen from the run with its own keys and values;
2. score every steered text in one unsteered run over it, and every unsteered text in one steered run per strength:
   the log probability of each token given those before.
"""

import math
from collections.abc import Iterator, Sequence

from services.contracts.generation import (
    FinishReason,
    GeneratedText,
    GenerationResult,
    GenerationSpec,
    NewTokens,
    PromptTexts,
    Sampled,
    SteeredText,
    TextScore,
)
from services.engine import decoding
from services.engine.decoder import within
from services.engine.decoding import Continuation, Generated, StopReason
from services.engine.readout import TextLogProbs
from services.engine.row import Row
from services.methods.context import MethodContext
from services.methods.metric import finite
from services.methods.steering import Steered, steered

VERSION = "1"

_FINISH: dict[StopReason, FinishReason] = {"stop_token": "stop", "max_new_tokens": "length", "context": "context"}


def run(spec: GenerationSpec, context: MethodContext) -> GenerationResult:
    """Every prompt's texts. Log probabilities are nats at temperature 1; positions are from 0, of prompt and text."""
    steering = steered(spec, context)
    stop = _stop(spec, context)
    asked = [
        [_continuation(spec, steering, prompt.ids, strength, stop) for strength in (None, *spec.steered_strengths())]
        for prompt in context.inputs.prompts
    ]
    texts = _generate(asked, spec, context)
    crossed = _cross_scores(asked, texts, context) if spec.log_probs else None
    prompts = tuple(
        PromptTexts(
            tokens=prompt,
            first_position=_first(spec, len(prompt.ids)),
            over_norm=over_norm,
            unsteered=_text(own[0], None, context, unsteered=_score(own[0].log_probs)),
            steered=tuple(_steered_texts(own, spec, crossed, context)),
        )
        for prompt, over_norm, own in zip(context.inputs.prompts, steering.over_norm, texts, strict=True)
    )
    return GenerationResult(
        sae=spec.sae_id(),
        unit=spec.unit,
        strengths=spec.steered_strengths(),
        steering=steering.applied,
        stop=stop,
        prompts=prompts,
        warnings=tuple(context.warnings),
        provenance=context.provenance(
            "generation", VERSION, spec.sampling.seed if isinstance(spec.sampling, Sampled) else None
        ),
        usage=context.usage(),
    )


def _stop(spec: GenerationSpec, context: MethodContext) -> tuple[int, ...]:
    if spec.stop is not None:
        return context.inputs.stops
    end = context.tokenizer.end_of_sequence
    return () if end is None else (end,)


def _first(spec: GenerationSpec, length: int) -> int:
    """The first steered position of a prompt of `length` tokens and its texts."""
    return spec.from_position if spec.from_position >= 0 else spec.from_position % length


def _continuation(
    spec: GenerationSpec, steering: Steered, tokens: tuple[int, ...], strength: float | None, stop: tuple[int, ...]
) -> Continuation:
    changes = () if strength is None else steering.at(strength, _first(spec, len(tokens)))
    return Continuation(tokens, spec.max_new_tokens, changes, frozenset(stop), _sampling(spec))


def _sampling(spec: GenerationSpec) -> decoding.Greedy | decoding.Sampled:
    match spec.sampling:
        case Sampled(seed=seed, temperature=temperature, top_k=top_k, top_p=top_p):
            return decoding.Sampled(seed, temperature, top_k, top_p)
        case _:
            return decoding.Greedy()


def _generate(
    asked: Sequence[Sequence[Continuation]], spec: GenerationSpec, context: MethodContext
) -> list[list[Generated]]:
    """Every prompt's texts, the unsteered one first."""
    strengths = (None, *spec.steered_strengths())
    written = [0] * (len(asked) * len(strengths))

    def tell(index: int, token: int, log_prob: float) -> None:
        prompt, place = divmod(index, len(strengths))
        news = NewTokens(
            prompt=prompt,
            strength=strengths[place],
            first=written[index],
            tokens=(token,),
            strings=(context.tokenizer.string(token),),
            log_probs=(log_prob,),
        )
        written[index] += 1
        context.on_tokens(news)

    found = iter(context.generate([one for own in asked for one in own], tell))
    return [[next(found) for _ in own] for own in asked]


Crossed = Iterator[tuple[TextScore, TextScore]]
"""By prompt and strength: the steered text under the unsteered model, the unsteered text under the steered one."""


def _cross_scores(
    asked: Sequence[Sequence[Continuation]], texts: Sequence[Sequence[Generated]], context: MethodContext
) -> Crossed:
    rows = []
    for own, written in zip(asked, texts, strict=True):
        for steered_one, text in zip(own[1:], written[1:], strict=True):
            rows += [_scoring_row(context, own[0], text), _scoring_row(context, steered_one, written[0])]
    scores = [_score(outcome.values().tolist()) for outcome in context.run(rows)]
    return iter(zip(scores[::2], scores[1::2], strict=True))


def _scoring_row(context: MethodContext, run: Continuation, text: Generated) -> Row:
    """All of `text` but its last token after the prompt, changed as `run` is."""
    tokens = (*run.tokens, *text.tokens[:-1])
    changes = tuple(within(context.model.facts, run, 0, len(tokens)))
    return Row(tokens, changes, readout=TextLogProbs(len(run.tokens) - 1, text.tokens))


def _steered_texts(
    own: Sequence[Generated], spec: GenerationSpec, crossed: Crossed | None, context: MethodContext
) -> Iterator[SteeredText]:
    for strength, text in zip(spec.steered_strengths(), own[1:], strict=True):
        unsteered, unsteered_text = next(crossed) if crossed is not None else (None, None)
        described = _text(text, _score(text.log_probs), context, unsteered=unsteered)
        yield SteeredText(**dict(described), strength=strength, unsteered_text=unsteered_text)


def _text(
    generated: Generated, own: TextScore | None, context: MethodContext, *, unsteered: TextScore | None
) -> GeneratedText:
    return GeneratedText(
        text=context.tokenizer.text(generated.tokens),
        tokens=generated.tokens,
        strings=tuple(context.tokenizer.string(token) for token in generated.tokens),
        finish_reason=_FINISH[generated.stopped],
        unsteered=unsteered,
        steered=own,
    )


def _score(log_probs: Sequence[float]) -> TextScore:
    stated = tuple(finite(log_prob, "a token's log probability") for log_prob in log_probs)
    mean = sum(stated) / len(stated)
    return TextScore(log_probs=stated, mean_log_prob=mean, perplexity=math.exp(min(-mean, 700.0)))
