"""From logits to readings."""

import torch
from jaxtyping import Float
from torch import Tensor

from services.engine.readout import (
    Divergence,
    Loss,
    Reading,
    Readout,
    TextLogProbs,
    TokenLogits,
    TokenLogProbs,
    TopK,
    TopTokens,
)


def positions_read(readout: Readout) -> range:
    """The positions whose logits a readout needs."""
    if isinstance(readout, Loss):
        return range(len(readout.targets))
    if isinstance(readout, TextLogProbs):
        return range(readout.position, readout.position + len(readout.targets))
    return range(readout.position, readout.position + 1)


def read_logits(
    readout: Readout,
    logits: Float[Tensor, "position vocabulary"],
    reference: Float[Tensor, " vocabulary"] | None = None,
) -> Reading:
    """What `readout` says of the logits at the positions it reads.

    `reference` holds the log probabilities that a Divergence is measured against.
    """
    if isinstance(readout, TopK):
        top = logits[-1].topk(min(readout.k, logits.shape[-1]))
        return TopTokens(tokens=top.indices.cpu(), logits=reported(top.values))
    return reported(numbers_of(readout, logits, reference))


def numbers_of(
    readout: TokenLogits | TokenLogProbs | TextLogProbs | Loss | Divergence,
    logits: Float[Tensor, "position vocabulary"],
    reference: Float[Tensor, " vocabulary"] | None = None,
) -> Float[Tensor, "..."]:
    """A reading of plain numbers where and as precise as the logits are; differentiable."""
    last = logits[-1]
    match readout:
        case TokenLogits():
            return last if readout.tokens is None else last[list(readout.tokens)]
        case TokenLogProbs():
            log_probs = last.log_softmax(-1)
            return log_probs if readout.tokens is None else log_probs[list(readout.tokens)]
        case Loss():
            targets = torch.tensor(readout.targets, device=logits.device)
            return torch.nn.functional.cross_entropy(logits, targets)
        case TextLogProbs():
            targets = torch.tensor(readout.targets, device=logits.device)
            return -torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        case Divergence():
            assert reference is not None
            return (reference.exp() * (reference - last.log_softmax(-1))).sum()


def reported(values: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Numbers as an outcome carries them: float32 on the CPU."""
    return values.to("cpu", torch.float32)
