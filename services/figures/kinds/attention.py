"""Attention: every head's scores by layer and head, then the patterns that were asked for."""

from services.contracts.attention import AttentionResult, HeadScores, PromptAttention
from services.contracts.tensor import FloatArray
from services.figures.heatmap import Heatmap
from services.figures.kinds.reading import array, blank, notes, of_all, pick, title
from services.figures.kinds.sweep import numbered
from services.figures.pattern import pattern
from services.figures.picture import Picture, grid, nothing_to_draw
from services.figures.scale import probability

_SCORES = ("previous_token", "duplicate_token", "induction", "copying")
_MOST_PATTERNS = 12
_IN_A_ROW = 3


def attention_picture(result: AttentionResult, example: int | None) -> Picture:
    """Scores are means over all prompts, or over the random sequences; patterns are of one prompt."""
    given = [] if result.scores is None else _scores(result.scores, "")
    random = [] if result.random_scores is None else _scores(result.random_scores, "random tokens")
    chosen = pick(result.prompts, example) if result.prompts or example is not None else None
    patterns = [] if chosen is None else _patterns(result, chosen)
    panels = [*given, *random, *patterns]
    if not panels:
        raise nothing_to_draw("the job asked for neither patterns nor scores")
    drawn = f"the first {len(patterns)} of {len(result.heads)} heads" if 0 < len(patterns) < len(result.heads) else ""
    of_prompt = of_all(len(result.prompts), "prompt", example or 0) if patterns else ""
    return Picture(
        title(result, "attention"),
        (*grid(given, len(_SCORES)), *grid(random, len(_SCORES)), *grid(patterns, _IN_A_ROW)),
        notes(result, of_prompt and f"patterns: {of_prompt}", drawn, _grey([*given, *random])),
    )


def _scores(scores: HeadScores, read: str) -> list[Heatmap]:
    return [_map(array(getattr(scores, name)), " · ".join(filter(None, (name, read)))) for name in _SCORES]


def _map(values: FloatArray, name: str) -> Heatmap:
    layers, heads = values.shape
    return Heatmap(values, numbered(layers), numbered(heads), probability("score"), name, "layer", "head")


def _patterns(result: AttentionResult, prompt: PromptAttention) -> list[Heatmap]:
    if prompt.patterns is None:
        return []
    shown = list(zip(result.heads, array(prompt.patterns), strict=True))[:_MOST_PATTERNS]
    return [pattern(values, prompt.tokens.strings, f"a{head.layer}.h{head.head}") for head, values in shown]


def _grey(panels: list[Heatmap]) -> str:
    return "grey: no token that such a head would look for" if any(blank(panel.values) for panel in panels) else ""
