"""Generation: a prompt's texts by strength, each token on the colour of how unlikely the unsteered model finds it."""

import numpy as np

from services.contracts.generation import GeneratedText, GenerationResult
from services.contracts.steering import AppliedSteering
from services.contracts.tensor import FloatArray
from services.figures import labels
from services.figures.kinds.reading import notes, number, of_all, pick, title
from services.figures.picture import Picture
from services.figures.scale import Scale, sequential
from services.figures.tokens import TokenText

_ITEMS = 4


def generation_picture(result: GenerationResult, example: int | None) -> Picture:
    """Of one prompt: the unsteered text, then one per strength. Without scores, by the run that wrote each."""
    prompt = pick(result.prompts, example)
    scored = all(text.unsteered is not None for text in prompt.steered)
    named: list[tuple[str, GeneratedText]] = [("unsteered", prompt.unsteered)]
    named += [(f"strength {text.strength:g}".replace("-", "−"), text) for text in prompt.steered]
    values = [_surprise(text, scored=scored) for _, text in named]
    under = "the unsteered model" if scored else "the run that wrote it"
    scale = sequential(f"−log p under {under} (nats)", *values)
    return Picture(
        title(result, "generation"),
        tuple(
            (_panel(name, text, own, scale, last=place == len(named)),)
            for place, ((name, text), own) in enumerate(zip(named, values, strict=True), 1)
        ),
        notes(
            result,
            of_all(len(result.prompts), "prompt", example or 0),
            f"prompt: {labels.plain(''.join(prompt.tokens.strings), 140)}",
            _steering(result.steering),
        ),
    )


def _panel(name: str, text: GeneratedText, values: FloatArray, scale: Scale, *, last: bool) -> TokenText:
    means = [
        f"{whose} {number(score.mean_log_prob)}"
        for whose, score in (("unsteered", text.unsteered), ("steered", text.steered))
        if score is not None
    ]
    said = f"{name} · mean log p: {', '.join(means)} · {text.finish_reason}"
    return TokenText(labels.tokens(text.strings), values, scale, said, bar=last)


def _surprise(text: GeneratedText, *, scored: bool) -> FloatArray:
    score = text.unsteered if scored or text.steered is None else text.steered
    assert score is not None, "a text is scored at least by the run that wrote it"
    return -np.array(score.log_probs, dtype=np.float32)


def _steering(items: tuple[AppliedSteering, ...]) -> str:
    """What was done, the first few items."""
    said = [
        " ".join(
            [
                item.operation.replace("_", " "),
                f"{item.type} {item.index}" if item.index is not None else item.type,
                f"a{item.layer}.h{item.head}" if item.head is not None else f"{item.site} {item.layer}",
            ]
        )
        for item in items[:_ITEMS]
    ]
    return "; ".join(said) + (f"; and {len(items) - _ITEMS} more" if len(items) > _ITEMS else "")
