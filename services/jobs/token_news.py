"""New tokens of a job that generates, put together: one piece per text instead of one per token."""

from collections.abc import Iterable

from services.contracts.generation import NewTokens

_Text = tuple[int, float | None]


def joined(pieces: Iterable[NewTokens]) -> tuple[NewTokens, ...]:
    """The same tokens, pieces of one text that follow on each other made one; texts in the order of their first."""
    texts: dict[_Text, list[list[NewTokens]]] = {}
    for piece in pieces:
        runs = texts.setdefault((piece.prompt, piece.strength), [])
        if runs and _end(runs[-1][-1]) == piece.first:
            runs[-1].append(piece)
        else:
            runs.append([piece])
    return tuple(_one(run) for runs in texts.values() for run in runs)


def _end(piece: NewTokens) -> int:
    return piece.first + len(piece.tokens)


def _one(run: list[NewTokens]) -> NewTokens:
    return NewTokens(
        prompt=run[0].prompt,
        strength=run[0].strength,
        first=run[0].first,
        tokens=tuple(token for piece in run for token in piece.tokens),
        strings=tuple(string for piece in run for string in piece.strings),
        log_probs=tuple(log_prob for piece in run for log_prob in piece.log_probs),
    )
