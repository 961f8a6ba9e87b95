"""Texts and directions, small, to be drawn."""

import numpy as np

from services.contracts.direction import DirectionResult, LayerDirection, ProjectedSet, Projections, Separation
from services.contracts.generation import GeneratedText, GenerationResult, PromptTexts, SteeredText, TextScore
from services.contracts.site import SiteName
from services.contracts.steering import AppliedSteering
from services.contracts.tensor import InlineTensor
from tests.services.figures.samples import CLEAN, about, tokens

STEERING = (
    AppliedSteering(type="feature", site=SiteName.RESID_POST, layer=1, index=7, operation="add", amount=1.0),
    AppliedSteering(type="head", site=SiteName.Z, layer=0, head=2, operation="ablate"),
)


def score(count: int) -> TextScore:
    log_probs = tuple(-float(number) / 3 for number in range(count))
    return TextScore(log_probs=log_probs, mean_log_prob=sum(log_probs) / count, perplexity=2.0)


def generation(
    strings: tuple[str, ...] = CLEAN, *, scored: bool = True, strengths: tuple[float, ...] = (-2.0, 4.0)
) -> GenerationResult:
    own = score(len(strings))
    text = GeneratedText(
        text="".join(strings),
        tokens=tuple(range(len(strings))),
        strings=strings,
        finish_reason="length",
        unsteered=own,
    )
    other = own if scored else None
    steered = tuple(
        SteeredText(**dict(text) | {"unsteered": other, "steered": own}, strength=strength, unsteered_text=other)
        for strength in strengths
    )
    prompt = PromptTexts(tokens=tokens(strings), first_position=1, over_norm=(0,), unsteered=text, steered=steered)
    return GenerationResult(
        sae=None,
        unit="activation",
        strengths=strengths,
        steering=STEERING if strengths else (),
        stop=(),
        prompts=(prompt,),
        **about("generation"),
    )


def separation(auroc: float) -> Separation:
    side = Projections(mean=1.0, standard_deviation=0.5, count=2)
    return Separation(positive=side, negative=side.model_copy(update={"mean": -1.0}), auroc=auroc, d_prime=4.0)


def direction(strings: tuple[str, ...] = CLEAN, *, held_out: bool = False) -> DirectionResult:
    projections = InlineTensor.of(np.linspace(-1, 2, 6).reshape(3, 2), ("layer", "prompt"))
    prompts = ProjectedSet(tokens=(tokens(strings),) * 2, projections=projections, held_out=(1,) if held_out else ())
    return DirectionResult(
        method="difference_of_means",
        site="resid_post",
        position="last",
        normalized=False,
        vectors=InlineTensor.of(np.ones((3, 4)), ("layer", "d_model")),
        layers=tuple(
            LayerDirection(
                layer=layer,
                norm=2.0,
                mean_norm=5.0,
                separation=separation(0.9),
                held_out=separation(0.5 + layer / 10) if held_out else None,
            )
            for layer in range(3)
        ),
        positive=prompts,
        negative=prompts,
        **about("direction"),
    )
