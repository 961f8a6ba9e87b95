"""Results as a person wants to see them in a terminal: a heatmap, a ranking, features in their contexts."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

Json = Mapping[str, Any]

CELL = 6
ROUNDS_TO_ZERO = 0.005


def show_patching(console: Console, result: Json) -> None:
    """Normalized effects as layer × position, blue below zero and red above, tokens as column labels."""
    pair = result["pairs"][0]
    clean, corrupted = pair["tokens"]["clean"]["strings"], pair["tokens"]["corrupted"]["strings"]
    baselines = pair["baselines"]
    console.print(
        f"  logit difference: clean [bold]{baselines['clean']:+.2f}[/], "
        f"corrupted [bold]{baselines['corrupted']:+.2f}[/]"
    )
    console.print(
        "  each cell: how much of the clean answer comes back when this one activation is restored (1 = all)\n"
    )
    header = Text(" " * 8)
    second = Text(" " * 8)
    for position, token in enumerate(clean):
        differs = position in pair["differing_positions"]
        header.append(_fit(token), Style(bold=True, underline=differs))
        second.append(_fit(corrupted[position] if differs else ""), Style(dim=True))
    console.print(header, soft_wrap=True)
    console.print(second, soft_wrap=True)
    rows = list(_rows(result["normalized"]))
    for layer, row in zip(reversed(result["layers"]), reversed(rows), strict=True):
        line = Text(f"  L{layer:<4} ")
        for value in row:
            line.append(_cell(value), _diverging(value))
        console.print(line, soft_wrap=True)


def show_attribution(console: Console, result: Json, top: int = 12) -> None:
    """The components that write most into the logit difference, with their share as a bar."""
    example = result["attribution"]["examples"][0]
    terms = result["attribution"]["terms"]
    named = [
        (f"head {layer}.{head}", value)
        for layer, row in enumerate(_rows(terms["heads"]))
        for head, value in enumerate(row)
    ]
    named += [(f"MLP {layer}", value) for layer, value in enumerate(terms["mlps"]["values"])]
    named += [("embedding", terms["embedding"]["values"][0])]
    named.sort(key=lambda term: -abs(term[1]))
    console.print(
        f"  logit difference [bold]{example['metric']:+.4f}[/] = sum of {len(named)} parts and biases "
        f"[bold]{example['sum_of_terms']:+.4f}[/] (gap {example['gap']:.1e})\n"
    )
    largest = abs(named[0][1])
    for name, value in named[:top]:
        bar = "█" * max(1, round(30 * abs(value) / largest))
        console.print(Text.assemble(f"  {name:<12} {value:+8.3f}  ", (bar, "red" if value > 0 else "blue")))
    console.print(f"  … and {len(named) - top} smaller ones")


def show_features(console: Console, result: Json, per_token: int = 3, top: int = 8) -> None:
    """Features per token, then the prompt's strongest features where they fire, with the tokens that they promote."""
    effects = {effect["index"]: effect for effect in result["effects"]}
    for prompt in result["prompts"]:
        reconstruction = prompt["reconstruction"]
        if reconstruction is not None and reconstruction["explained_variance"] is not None:
            console.print(
                f"  {reconstruction['tokens']} tokens encoded, {reconstruction['mean_l0']:.0f} features per token, "
                f"explained variance {reconstruction['explained_variance']:.2f}\n"
            )
        table = Table("token", "strongest features (activation)", box=None, padding=(0, 2, 0, 2), header_style="bold")
        for token in prompt["per_token"]:
            strongest = "   ".join(f"#{f['index']} ({f['activation']:.1f})" for f in token["features"][:per_token])
            table.add_row(
                Text(repr(token["token"])), "[dim]left out: attention sink[/]" if token["over_norm"] else strongest
            )
        console.print(table)
        console.print()
        strings = prompt["tokens"]["strings"]
        for feature in prompt["top"][:top]:
            console.print(_in_context(feature, strings, prompt["per_token"], effects.get(feature["index"])))


def _in_context(feature: Json, strings: Sequence[str], per_token: Sequence[Json], effect: Json | None) -> Text:
    line = Text.assemble("  ", (f"#{feature['index']:<5}", "bold"), f" {feature['max_activation']:6.1f}  ")
    for position, string in enumerate(strings):
        activation = next(
            (f["activation"] for f in per_token[position]["features"] if f["index"] == feature["index"]), 0.0
        )
        share = activation / feature["max_activation"]
        line.append(
            string, Style(bgcolor=_blend((255, 255, 255), (255, 150, 40), share), color="black") if share > 0 else "dim"
        )
    if effect is not None:
        promoted = " ".join(repr(token["token"]) for token in effect["promoted"][:4])
        line.append(f"   promotes {promoted}", "dim")
    return line


def _rows(tensor: Json) -> Iterator[list[float]]:
    width = tensor["shape"][-1]
    values = tensor["values"]
    for start in range(0, len(values), width):
        yield [float("nan") if value is None else value for value in values[start : start + width]]


def _fit(token: str) -> str:
    visible = token.strip().replace("\n", "⏎")[: CELL - 1] or "␣" * bool(token)
    return f"{visible:>{CELL - 1}} "


def _cell(value: float) -> str:
    """Two decimals; a dash where there is no number, and no sign on what rounds to zero."""
    if abs(value) < ROUNDS_TO_ZERO:
        return "0.00 ".rjust(CELL)
    return f"{value:+.2f} ".rjust(CELL) if math.isfinite(value) else "  –   "


def _diverging(value: float) -> Style:
    if not math.isfinite(value):
        return Style(dim=True)
    share = min(1.0, abs(value))
    background = _blend((255, 255, 255), (200, 30, 40) if value > 0 else (30, 70, 200), share)
    return Style(bgcolor=background, color="white" if share > 0.55 else "black")


def _blend(start: tuple[int, int, int], end: tuple[int, int, int], share: float) -> Any:
    red, green, blue = (round(a + (b - a) * min(1.0, share)) for a, b in zip(start, end, strict=True))
    return Color.from_rgb(red, green, blue)
