"""Attributions to input tokens: the prompt as text, red where a token raises the metric and blue where it lowers it."""

from services.contracts.attribution import AttributionResult
from services.contracts.gradient_x_input import GradientXInputOutcome
from services.contracts.integrated_gradients import IntegratedGradientsOutcome
from services.contracts.result import PromptTokens
from services.contracts.tensor import Tensor
from services.figures import labels
from services.figures.kinds.reading import array, notes, number, of_all, pick, title
from services.figures.picture import Picture
from services.figures.scale import signed
from services.figures.tokens import TokenText


def gradient_x_input_picture(result: AttributionResult, outcome: GradientXInputOutcome, example: int | None) -> Picture:
    chosen = pick(outcome.examples, example)
    return Picture(
        title(result, "gradient × input"),
        ((_text(chosen.tokens, chosen.attributions),),),
        notes(result, of_all(len(outcome.examples), "example", example or 0), f"metric {number(chosen.metric)}"),
    )


def integrated_gradients_picture(
    result: AttributionResult, outcome: IntegratedGradientsOutcome, example: int | None
) -> Picture:
    chosen = pick(outcome.examples, example)
    what = "example" if chosen.baseline_tokens is None else "pair"
    sums = (
        f"metric {number(chosen.metric)}, at the baseline {number(chosen.baseline_metric)}; sum of attributions "
        f"{number(chosen.sum)}, completeness gap {number(chosen.completeness_gap)}"
    )
    how = f"{outcome.steps} steps, {outcome.quadrature} rule, baseline {outcome.baseline}"
    return Picture(
        title(result, "integrated gradients"),
        ((_text(chosen.tokens, chosen.attributions),),),
        notes(result, of_all(len(outcome.examples), what, example or 0), sums, how),
    )


def _text(tokens: PromptTokens, attributions: Tensor) -> TokenText:
    values = array(attributions)
    return TokenText(labels.tokens(tokens.strings), values, signed("attribution (metric)", values))
