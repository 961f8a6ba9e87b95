"""Scores that tell known kinds of attention heads apart; see `HeadScores` for what each one means.

Sources: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits" (previous-token heads); Olsson et al.
2022, arXiv:2209.11895 (induction heads, prefix matching); Wang et al. 2022, arXiv:2211.00593 (duplicate-token heads,
and the copy score of name movers).
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from services.engine.weights import Weights

LARGEST = 5
"""A token is copied when it is among this many largest logits."""

LOOKS = (512, 4_096)
"""How many logits, drawn at random, are looked at before all of them: few heads copy, and most show it here."""

CELLS_AT_ONCE = 64
"""Heads and tokens whose logits are computed in full at once."""

TOKENS_AT_ONCE = 256

Mask = Bool[Tensor, "query key"]


def masks(tokens: Sequence[int], first: int) -> dict[str, Mask]:
    """Where a head of each kind would look, for tokens from position `first` on: behind a BOS token."""
    ids = torch.tensor(tokens)
    positions = torch.arange(len(tokens))
    earlier = (positions[:, None] > positions[None, :]) & (positions >= first)[None, :]
    same = (ids[:, None] == ids[None, :]) & earlier
    after_same = torch.zeros_like(same)
    after_same[:, 1:] = same[:, :-1]
    return {
        "previous_token": earlier & (positions[:, None] == positions[None, :] + 1),
        "duplicate_token": same,
        "induction": after_same & earlier,
    }


def attention_score(pattern: Float[Tensor, "query head key"], mask: Mask) -> Float[Tensor, " head"]:
    """The attention to the mask's keys, its mean over the queries that have one; NaN where none has."""
    queries = mask.any(dim=1)
    attended = (pattern.double() * mask[:, None, :]).sum(dim=-1)
    return attended[queries].mean(dim=0)


def copied(
    tokens: Int[Tensor, " position"], residual: Float[Tensor, "position d_model"], layer: int, weights: Weights
) -> Bool[Tensor, "position head"]:
    """Which of `tokens` each head of `layer` would copy; `residual` is the stream after the first layer.

    Tokens may be of many sequences: each goes through the heads alone.
    """
    pieces = [slice(first, first + TOKENS_AT_ONCE) for first in range(0, max(1, len(tokens)), TOKENS_AT_ONCE)]
    return torch.cat([_copied(tokens[piece], residual[piece], layer, weights) for piece in pieces])


def _copied(
    tokens: Int[Tensor, " position"], residual: Float[Tensor, "position d_model"], layer: int, weights: Weights
) -> Bool[Tensor, "position head"]:
    values = weights.attended_values(weights.values(layer, residual.to(weights.W_U)))
    written = weights.normed(weights.lone_heads(layer, values))
    own = tokens[:, None].expand(written.shape[:2])
    return is_among_largest(written.flatten(0, 1), own.flatten().to(written.device), weights).reshape(own.shape)


def is_among_largest(
    normed: Float[Tensor, "cell d_model"],
    own: Int[Tensor, " cell"],
    weights: Weights,
    looks: Sequence[int] = LOOKS,
) -> Bool[Tensor, " cell"]:
    """Whether fewer than five tokens have a larger logit than `own`.

    Five larger ones among a few tokens settle it, so only what is left after two looks is computed in full. A soft cap
    and a logit scale leave the order as it is.
    """
    vocabulary = weights.W_U.shape[1]
    order = torch.randperm(vocabulary, generator=torch.Generator().manual_seed(0)).to(normed.device)
    undecided = torch.arange(len(own), device=normed.device)
    first = 0
    for look in looks:
        piece = order[first : first + look]
        first += look
        undecided = undecided[_larger(normed[undecided], own[undecided], weights, piece) < LARGEST]
    among = torch.zeros(len(own), dtype=torch.bool)
    for first in range(0, len(undecided), CELLS_AT_ONCE):
        some = undecided[first : first + CELLS_AT_ONCE]
        among[some.cpu()] = (_larger(normed[some], own[some], weights, None) < LARGEST).cpu()
    return among


def _larger(
    normed: Float[Tensor, "cell d_model"],
    own: Int[Tensor, " cell"],
    weights: Weights,
    piece: Int[Tensor, " token"] | None,
) -> Int[Tensor, " cell"]:
    """How many tokens of `piece`, or of the whole vocabulary, have a larger logit than `own`."""
    unembedding, bias = weights.W_U.T, weights.b_U
    own_logits = (normed * unembedding[own]).sum(dim=-1) + (0.0 if bias is None else bias[own])
    tokens = torch.arange(len(unembedding), device=normed.device) if piece is None else piece
    logits = normed @ (unembedding if piece is None else unembedding[piece]).T
    logits = logits if bias is None else logits + bias[tokens]
    return ((logits > own_logits[:, None]) & (tokens[None, :] != own[:, None])).sum(dim=-1)
