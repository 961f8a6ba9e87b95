"""A family-free, read-only view of the weights that write to the logits directly.

For direct logit attribution and promoted logits: which direction of the residual stream moves a token's logit, and how
a head's `z` becomes its part of `attn_out`. Raw weights, nothing folded. All norms are linear here: the scale is taken
from a run and held.
"""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

from services.models.load import LoadedModel


@dataclass(frozen=True, eq=False)
class Norm:
    """A LayerNorm or RMSNorm. `gain` is what multiplies (Gemma's 1 + w included)."""

    kind: Literal["layer", "rms"]
    gain: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"] | None
    eps: float

    def scale(self, at: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch 1"]:
        """What the norm divides by at this input: the root of (variance or mean square, plus eps)."""
        raise NotImplementedError

    def linear(
        self, term: Float[Tensor, "*term d_model"], scale: Float[Tensor, "*#term 1"]
    ) -> Float[Tensor, "*term d_model"]:
        """The part of the norm's output that `term` of its input makes, at a held scale: centring and gain, no bias."""
        raise NotImplementedError


class Weights:
    """The weights of one model, in its own dtype and on its own device; nothing is copied until it is read.

    `logit_scale` multiplies the unembedding's output (Granite). A final soft cap is not part of this view.
    """

    def __init__(self, model: LoadedModel) -> None:
        raise NotImplementedError

    final_norm: Norm
    logit_scale: float
    logit_soft_cap: float | None

    @property
    def W_U(self) -> Float[Tensor, "d_model vocabulary"]:
        raise NotImplementedError

    @property
    def b_U(self) -> Float[Tensor, " vocabulary"] | None:
        raise NotImplementedError

    def W_O(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        raise NotImplementedError

    def b_O(self, layer: int) -> Float[Tensor, " d_model"] | None:
        raise NotImplementedError

    def head_terms(
        self, layer: int, z: Float[Tensor, "*batch head d_head"]
    ) -> tuple[Float[Tensor, "*batch head d_model"], Float[Tensor, "*batch d_model"]]:
        """Each head's part of `attn_out`, and the bias's: they add up to it.

        Through the post-norm at its own scale where the family has one, times the family's residual multiplier.
        """
        raise NotImplementedError

    def logit_directions(self, tokens: Int[Tensor, " token"]) -> Float[Tensor, "token d_model"]:
        """Rows of W_U^T for `tokens`, times `logit_scale`: dot products with the final norm's output give logits."""
        raise NotImplementedError
