"""How an SAE scales a token's activation before it encodes it, and undoes that after decoding; SAELens' formulas.

    constant_norm_rescale   x √d / ‖x‖                     out: x̂ ‖x‖ / √d
    layer_norm              (x − mean) / (std + 1e-5)      out: x̂ std + mean     (std with d − 1, as SAELens takes it)

Both belong to one token. "none" does nothing. "expected_average_only_in" is a constant that SAELens folds into the
weights when training ends, so nothing is left to do at run time, there or here.
"""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

Normalization = Literal["none", "expected_average_only_in", "constant_norm_rescale", "layer_norm"]
PER_TOKEN = frozenset({"constant_norm_rescale", "layer_norm"})
SMALLEST_NORM = 1e-8
LAYER_NORM_EPSILON = 1e-5


@dataclass(frozen=True)
class TokenScale:
    """What was taken from each token, [token, 1]: the SAE sees (x − shift) / divisor; out comes x̂ · factor + shift."""

    shift: Float[Tensor, "token 1"]
    divisor: Float[Tensor, "token 1"]
    factor: Float[Tensor, "token 1"]

    def into(self, x: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
        return (x - self.shift) / self.divisor

    def out_of(self, x_hat: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
        return x_hat * self.factor + self.shift


def token_scale(normalization: Normalization, x: Float[Tensor, "token d_model"]) -> TokenScale | None:
    """The scale of each token of x; None where the SAE takes activations as they are."""
    match normalization:
        case "constant_norm_rescale":
            size = x.norm(dim=-1, keepdim=True).clamp(min=SMALLEST_NORM) / x.shape[-1] ** 0.5
            return TokenScale(shift=x.new_zeros(len(x), 1), divisor=size, factor=size)
        case "layer_norm":
            std = x.std(dim=-1, keepdim=True)
            return TokenScale(shift=x.mean(dim=-1, keepdim=True), divisor=std + LAYER_NORM_EPSILON, factor=std)
        case _:
            return None
