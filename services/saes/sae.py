"""A sparse autoencoder or transcoder in memory, and its arithmetic.

    pre      = (x − b_dec) W_enc + b_enc        (b_dec subtracted only where the SAE was trained so)
    features = activation(pre)                  TopK: the k largest, then ReLU; standard: ReLU
    x̂        = features W_dec + b_dec

A transcoder reads x at one site and rebuilds y at a later one (Dunefsky et al. 2024, arXiv:2406.11944); with a skip:

    ŷ        = features W_dec + b_dec + x W_skip^T

Where the SAE normalizes activations, x is a token's scaled activation, and the scale is undone on x̂; not on ŷ, and the
skip takes x as it is.
As in SAELens, whose `encode` and `decode` these reproduce; both are differentiable. Tensors are [token, …]: callers
flatten rows and positions.
Tokens whose norm exceeds `norm_threshold` are not what the SAE was trained on; `within_norm` says which to leave alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from services.saes.activation import Activation, Gated, JumpRelu, Relu, TopK
from services.saes.errors import SaeMismatch
from services.saes.normalization import PER_TOKEN, Normalization, token_scale

__all__ = ["Gated", "JumpRelu", "Relu", "Sae", "TopK"]

FEW = 8
"""Features are few when they are at most one in so many of the SAE's: looking at them first then pays."""


@dataclass(frozen=True, eq=False)
class Sae:
    """Weights and conventions of one SAE. `sha256` is that of its weights file, `config_sha256` that of its cfg.json;
    both are empty for one made in memory.

    `prepend_bos`: whether it was trained on rows that begin with BOS; None if unknown. `mean_activation`, over its
    training tokens within the threshold, is what explained variance and mean ablation are measured against: of what it
    rebuilds. `decoder_norms_folded`: the files scale activations by decoder norms; here the weights do.
    `hook_name_out` is where a transcoder writes, None for an SAE. An SAE of attn.hook_z has all heads side by side.
    """

    W_enc: Float[Tensor, "d_model d_sae"]
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_out"]
    b_dec: Float[Tensor, " d_out"]
    activation: Activation
    apply_b_dec_to_input: bool
    hook_name: str
    model_id: str | None = None
    prepend_bos: bool | None = None
    norm_threshold: float | None = None
    mean_activation: Float[Tensor, " d_out"] | None = None
    sha256: str = ""
    config_sha256: str = ""
    normalize_activations: Normalization = "none"
    decoder_norms_folded: bool = False
    hook_name_out: str | None = None
    W_skip: Float[Tensor, "d_out d_model"] | None = None

    @property
    def d_model(self) -> int:
        """The width of what it reads."""
        return self.W_enc.shape[0]

    @property
    def d_out(self) -> int:
        """The width of what it rebuilds; `d_model`, unless it is a transcoder."""
        return self.W_dec.shape[1]

    @property
    def d_sae(self) -> int:
        return self.W_enc.shape[1]

    @property
    def k(self) -> int | None:
        """Features kept per token, for TopK."""
        return self.activation.k if isinstance(self.activation, TopK) else None

    @property
    def architecture(self) -> str:
        """By SAELens' name."""
        if self.hook_name_out is None:
            return self.activation.architecture
        jumps = "jumprelu_" if isinstance(self.activation, JumpRelu) else ""
        return f"{jumps}{'' if self.W_skip is None else 'skip_'}transcoder"

    @property
    def layer(self) -> int:
        """The layer whose hook point it reads."""
        return int(self.hook_name.split(".")[1])

    def encode(self, x: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_sae"]:
        """Feature activations, in the SAE's dtype."""
        return self.activation.features(self._pre_activations(x))

    def encode_top(
        self, x: Float[Tensor, "token d_model"], count: int
    ) -> tuple[Float[Tensor, "token count"], Int[Tensor, "token count"]]:
        """(values, indices) of the `count` largest features per token, descending. A value of zero does not fire."""
        pre, count = self._pre_activations(x), min(count, self.d_sae)
        if isinstance(self.activation, TopK):
            return self.activation.top(pre, count)
        values, indices = self.activation.features(pre).topk(count, dim=-1)
        return values, indices

    def encode_columns(
        self, x: Float[Tensor, "token d_model"], indices: Int[Tensor, " feature"] | Sequence[int]
    ) -> Float[Tensor, "token feature"]:
        """The activations of these features alone, as `encode` gives them.

        Only their columns of W_enc are multiplied; TopK, whose features depend on each other, needs all of them on the
        tokens where one of these could fire, but neither sorts nor writes down the rest.
        """
        chosen = torch.as_tensor(indices, dtype=torch.long, device=self.W_enc.device)
        if isinstance(self.activation, TopK) and len(chosen) * FEW > self.d_sae:
            return self.activation.columns(self._pre_activations(x), chosen)
        scaled = self._input(x)
        pre = scaled @ self.W_enc[:, chosen] + self.b_enc[chosen]
        if not isinstance(self.activation, TopK):
            return self.activation.at(chosen).features(pre)
        tokens = (pre > 0).any(dim=-1).nonzero().flatten()
        fired = self.activation.columns(scaled[tokens] @ self.W_enc + self.b_enc, chosen)
        return torch.zeros_like(pre).index_copy(0, tokens, fired)

    def decode(
        self, features: Float[Tensor, "token d_sae"], of: Float[Tensor, "token d_model"] | None = None
    ) -> Float[Tensor, "token d_out"]:
        """What the features of the activations `of` rebuild: x̂, or a transcoder's ŷ.

        Only an SAE that scales each token and a transcoder with a skip need `of`; raises SaeMismatch when they are not
        given it.
        """
        rebuilt = features @ self.W_dec + self.b_dec
        if self.hook_name_out is not None:
            return rebuilt if self.W_skip is None else rebuilt + self._given(of) @ self.W_skip.T
        if self.normalize_activations not in PER_TOKEN:
            return rebuilt
        scale = token_scale(self.normalize_activations, self._given(of))
        return rebuilt if scale is None else scale.out_of(rebuilt)

    def reconstruct(self, x: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_out"]:
        """x̂ or ŷ of x: encoded, decoded, and each token's scale undone or the skip added."""
        return self.decode(self.encode(x), x)

    def within_norm(self, x: Float[Tensor, "token d_model"]) -> Bool[Tensor, " token"]:
        """Which tokens the SAE may be used on; all of them when no threshold is stored."""
        if self.norm_threshold is None:
            return torch.ones(x.shape[0], dtype=torch.bool, device=x.device)
        norms: Tensor = x.float().norm(dim=-1)
        return norms <= self.norm_threshold

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Self:
        """The same SAE elsewhere or in another precision."""
        held = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        moved: dict[str, Any] = {name: value.to(device, dtype) for name, value in held.items()}
        return replace(self, activation=self.activation.to(device, dtype), **moved)

    def tensors(self) -> list[Tensor]:
        """All that it holds in memory, its activation function's tensors and the mean among them; each once."""
        held = [*vars(self).values(), *vars(self.activation).values()]
        return list({id(value): value for value in held if isinstance(value, Tensor)}.values())

    def _given(self, of: Float[Tensor, "token d_model"] | None) -> Float[Tensor, "token d_model"]:
        if of is None:
            why = (
                "a skip adds to what features write"
                if self.W_skip is not None
                else f"the SAE scales each token ({self.normalize_activations})"
            )
            raise SaeMismatch(f"{why}: features alone do not give the activations back")
        return of.to(self.W_dec.dtype)

    def _pre_activations(self, x: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_sae"]:
        return self._input(x) @ self.W_enc + self.b_enc

    def _input(self, x: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
        x = x.to(self.W_enc.dtype)
        scale = token_scale(self.normalize_activations, x)
        x = x if scale is None else scale.into(x)
        return x - self.b_dec if self.apply_b_dec_to_input else x
