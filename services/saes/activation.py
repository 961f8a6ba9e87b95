"""What turns pre-activations x W_enc + b_enc into features: one class per activation function.

All but TopK act on each feature by itself, so that a few columns cost a few columns (`at`). All are differentiable:
the gradient of a feature that fires is that of its magnitude, and zero for one that does not, as in SAELens.
"""

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

Pre = Float[Tensor, "token d_sae"]
Top = tuple[Float[Tensor, "token count"], Int[Tensor, "token count"]]


@dataclass(frozen=True)
class TopK:
    """Keeps the k largest pre-activations of a token, then ReLU (Gao et al. 2024, arXiv:2406.04093)."""

    k: int
    architecture: ClassVar[str] = "topk"

    def features(self, pre: Pre) -> Pre:
        values, indices = pre.topk(self.k, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter(-1, indices, values.relu())

    def top(self, pre: Pre, count: int) -> Top:
        """The `count` largest activations of each token, descending, and their indices; zeros do not fire."""
        values, indices = pre.topk(count, dim=-1)
        kept = torch.arange(count, device=pre.device) < self.k
        return values.relu() * kept, indices

    def columns(self, pre: Pre, indices: Int[Tensor, " feature"]) -> Float[Tensor, "token feature"]:
        """The activations of these features: a selection of k, and no other feature written down.

        A feature as large as the smallest one kept is kept if the selection holds it, as in `features`.
        """
        values, kept = pre.topk(self.k, dim=-1, sorted=False)
        smallest = values.amin(dim=-1, keepdim=True)
        chosen = pre[:, indices]
        fires = chosen > smallest
        tokens, places = (chosen == smallest).nonzero(as_tuple=True)
        fires[tokens, places] = (kept[tokens] == indices[places, None]).any(dim=-1)
        return chosen.relu() * fires

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Self:
        return self


@dataclass(frozen=True)
class Relu:
    """The standard SAE's activation."""

    architecture: ClassVar[str] = "standard"

    def features(self, pre: Pre) -> Pre:
        return pre.relu()

    def at(self, indices: Int[Tensor, " feature"]) -> Self:
        return self

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Self:
        return self


@dataclass(frozen=True, eq=False)
class JumpRelu:
    """A feature fires where its pre-activation exceeds its own threshold (Rajamanoharan et al. 2024, arXiv:2407.14435).

    SAELens stores BatchTopK and Matryoshka SAEs so, too: the batch's threshold becomes a threshold per feature.
    """

    threshold: Float[Tensor, " d_sae"]
    architecture: ClassVar[str] = "jumprelu"

    def features(self, pre: Pre) -> Pre:
        return pre.relu() * (pre > self.threshold)

    def at(self, indices: Int[Tensor, " feature"]) -> "JumpRelu":
        return JumpRelu(self.threshold[indices])

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "JumpRelu":
        return JumpRelu(self.threshold.to(device, dtype))


@dataclass(frozen=True, eq=False)
class Gated:
    """A gate decides what fires, a magnitude path how strongly (Rajamanoharan et al. 2024, arXiv:2404.16014).

    The paths share W_enc: the gate is pre = x W_enc + b_gate, the magnitude (x W_enc) exp(r_mag) + b_mag.
    """

    b_gate: Float[Tensor, " d_sae"]
    r_mag: Float[Tensor, " d_sae"]
    b_mag: Float[Tensor, " d_sae"]
    architecture: ClassVar[str] = "gated"

    def features(self, pre: Pre) -> Pre:
        magnitudes = (pre - self.b_gate) * self.r_mag.exp() + self.b_mag
        return magnitudes.relu() * (pre > 0)

    def at(self, indices: Int[Tensor, " feature"]) -> "Gated":
        return Gated(self.b_gate[indices], self.r_mag[indices], self.b_mag[indices])

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "Gated":
        return Gated(*(tensor.to(device, dtype) for tensor in (self.b_gate, self.r_mag, self.b_mag)))


Activation = TopK | Relu | JumpRelu | Gated
