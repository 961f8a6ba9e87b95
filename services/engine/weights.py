"""A family-free, read-only view of the weights between the residual stream, the heads and the logits.

Which direction of the residual stream moves a token's logit, how a head's `z` becomes its part of `attn_out`, and what
its q, k and v are made of. Raw weights, nothing folded. Where a norm is called linear, its scale is taken from a run
and held.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from services.contracts.site import SiteName
from services.engine.tail import Tail
from services.models.load import LoadedModel

_TOGETHER = 4_096
"""Tokens of the vocabulary embedded at once."""


@dataclass(frozen=True, eq=False)
class Norm:
    """A LayerNorm or RMSNorm. `gain` is what multiplies (Gemma's 1 + w included)."""

    kind: Literal["layer", "rms"]
    gain: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"] | None
    eps: float

    def scale(self, at: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch 1"]:
        """What the norm divides by at this input: the root of (variance or mean square, plus eps)."""
        centred = self._centred(at)
        return (centred.square().mean(-1, keepdim=True) + self.eps).sqrt()

    def linear(
        self, term: Float[Tensor, "*term d_model"], scale: Float[Tensor, "*#term 1"]
    ) -> Float[Tensor, "*term d_model"]:
        """The part of the norm's output that `term` of its input makes, at a held scale: centring and gain, no bias."""
        return self._centred(term) / scale * self.gain.to(term)

    def carried_back(
        self, direction: Float[Tensor, "*batch d_model"], scale: Float[Tensor, "*#batch 1"]
    ) -> Float[Tensor, "*batch d_model"]:
        """What a term of the input is to be dotted with, for the product of its `linear` part with `direction`."""
        return self._centred(direction * self.gain.to(direction)) / scale

    def pulled_back(
        self, gradient: Float[Tensor, "*batch d_model"], at: Float[Tensor, "*#batch d_model"]
    ) -> Float[Tensor, "*batch d_model"]:
        """The gradient at the norm's input, given that at its output: the scale is not held here."""
        scale, centred = self.scale(at), self._centred(at)
        inner = self._centred(gradient * self.gain.to(gradient)) / scale
        along = (inner * centred).mean(-1, keepdim=True) / scale.square()
        return inner - centred * along

    def _centred(self, vectors: Tensor) -> Tensor:
        return vectors - vectors.mean(-1, keepdim=True) if self.kind == "layer" else vectors


class Weights:
    """The weights of one model, in its own dtype and on its own device; activations may come in another.

    `logit_scale` multiplies the unembedding's output (Granite divides its logits). A final soft cap is not part of it.
    """

    def __init__(self, model: LoadedModel) -> None:
        self._bridge = model.bridge
        self._config: Any = model.bridge.original_model.config
        self._tail = Tail(model)
        self._heads, self._d_head = model.facts.heads, model.facts.d_head
        self._kv_heads = model.facts.kv_heads
        self.final_norm = self._norm(model.bridge.ln_final)
        self.logit_scale = 1.0 / float(getattr(self._config, "logits_scaling", 1.0))
        self.logit_soft_cap: float | None = getattr(self._config, "final_logit_softcapping", None)

    @property
    def W_U(self) -> Float[Tensor, "d_model vocabulary"]:
        weight: Tensor = self._bridge.unembed.original_component.weight
        return weight.T

    @torch.no_grad()
    def mean_embedding(self) -> Float[Tensor, " d_model"]:
        """What `embed` gives on average over the vocabulary, a scale of the family's included."""
        embed = self._bridge.embed.original_component
        _, vocabulary = self.W_U.shape
        pieces = torch.chunk(torch.arange(vocabulary, device=self.W_U.device), -(-vocabulary // _TOGETHER))
        total: Tensor = torch.stack([embed(tokens).double().sum(0) for tokens in pieces]).sum(0)
        return (total / vocabulary).to(self.W_U.dtype)

    @property
    def b_U(self) -> Float[Tensor, " vocabulary"] | None:
        bias: Tensor | None = self._bridge.unembed.original_component.bias
        return bias

    def W_O(self, layer: int) -> Float[Tensor, "head d_head d_model"]:
        projection = self._projection(layer)
        weight: Tensor = projection.weight if isinstance(projection, Conv1D) else projection.weight.T
        return weight.reshape(self._heads, self._d_head, -1)

    def b_O(self, layer: int) -> Float[Tensor, " d_model"] | None:
        bias: Tensor | None = self._projection(layer).bias
        return bias

    def head_terms(
        self, layer: int, z: Float[Tensor, "*batch head d_head"]
    ) -> tuple[Float[Tensor, "*batch head d_model"], Float[Tensor, "*batch d_model"]]:
        """Each head's part of `attn_out`, and the bias's: they add up to it.

        Through the post-norm at its own scale where the family has one, times the family's residual multiplier.
        """
        heads = torch.einsum("...hd,hdm->...hm", z, self.W_O(layer).to(z))
        b_o = self.b_O(layer)
        bias = torch.zeros_like(heads[..., 0, :]) if b_o is None else b_o.to(z).expand_as(heads[..., 0, :])
        norm = self._attention_post_norm(layer)
        if norm is not None:
            scale = norm.scale(heads.sum(-2) + bias)
            heads, bias = norm.linear(heads, scale[..., None, :]), norm.linear(bias, scale)
        multiplier = float(getattr(self._config, "residual_multiplier", 1.0))
        return heads * multiplier, bias * multiplier

    def written_by_heads(
        self, layer: int, z: Float[Tensor, "head d_head"], parts: Float[Tensor, "part head d_head"]
    ) -> Float[Tensor, "part d_model"]:
        """What parts of a run's `z` add to the residual stream: no bias, any post-norm's scale held at the run's."""
        b_o = self.b_O(layer)
        output = torch.einsum("hd,hdm->m", z, self.W_O(layer).to(z)) + (0.0 if b_o is None else b_o.to(z))
        written = torch.einsum("phd,hdm->pm", parts, self.W_O(layer).to(parts))
        norm = self._attention_post_norm(layer)
        if norm is not None:
            written = norm.linear(written, norm.scale(output).to(written))
        return written * float(getattr(self._config, "residual_multiplier", 1.0))

    def through_attention(self, layer: int, z: Float[Tensor, "*batch head d_head"]) -> Float[Tensor, "*batch d_model"]:
        """What one unit of a direction of `z` adds to `attn_out`: W_O, a post-norm's gain without its scale."""
        written = torch.einsum("...hd,hdm->...m", z, self.W_O(layer).to(z))
        norm = self._attention_post_norm(layer)
        if norm is not None:
            written = norm.linear(written, torch.ones_like(written[..., :1]))
        return written * float(getattr(self._config, "residual_multiplier", 1.0))

    @torch.no_grad()
    def mlp_input(self, layer: int, resid_mid: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """What the layer's MLP reads of the residual stream: through the norm before it, where the family has one."""
        if self._behind(layer, "hook_mlp_out", "mlp") == "ln2":
            return resid_mid
        norm = self._bridge.blocks[layer].ln2.original_component
        normed: Tensor = norm(resid_mid.to(self.W_U))
        return normed

    def attention_norm(self, layer: int) -> Norm | None:
        """The norm between the residual stream and attention; None in families that read the stream itself."""
        return (
            None
            if self._behind(layer, "hook_attn_out", "attn") == "ln1"
            else self._norm(self._bridge.blocks[layer].ln1)
        )

    def head_inputs(
        self, layer: int, site: SiteName
    ) -> tuple[Float[Tensor, "head d_head d_model"], Float[Tensor, "head d_head"] | None]:
        """What makes `q`, `k` or `v` of what attention reads: W and b by head, by KV head for `k` and `v`."""
        projection = getattr(self._bridge.blocks[layer].attn, site.value).original_component
        weight: Tensor = projection.weight.T if isinstance(projection, Conv1D) else projection.weight
        bias: Tensor | None = projection.bias
        by_head = weight.reshape(-1, self._d_head, weight.shape[-1])
        return by_head, None if bias is None else bias.reshape(-1, self._d_head)

    def attention_direction(
        self, layer: int, z: Float[Tensor, "head d_head"], direction: Float[Tensor, " d_model"]
    ) -> Float[Tensor, " d_model"]:
        """`direction` in the residual stream, carried back to what the heads write before any post-norm.

        The post-norm's scale is held at this run's `z`; the family's residual multiplier is in it.
        """
        b_o = self.b_O(layer)
        output = torch.einsum("hd,hdm->m", z, self.W_O(layer).to(z)) + (0.0 if b_o is None else b_o.to(z))
        return self._before_post_norm(self._attention_post_norm(layer), output, direction)

    def W_out(self, layer: int) -> Float[Tensor, "d_mlp d_model"]:
        projection = self._mlp_projection(layer)
        weight: Tensor = projection.weight if isinstance(projection, Conv1D) else projection.weight.T
        return weight

    def b_out(self, layer: int) -> Float[Tensor, " d_model"] | None:
        bias: Tensor | None = self._mlp_projection(layer).bias
        return bias

    def mlp_direction(
        self, layer: int, mlp_post: Float[Tensor, " d_mlp"], direction: Float[Tensor, " d_model"]
    ) -> Float[Tensor, " d_model"]:
        """`direction` in the residual stream, carried back to what the neurons write before any post-norm.

        The post-norm's scale is held at this run's `mlp_post`; the family's residual multiplier is in it.
        """
        b_out = self.b_out(layer)
        output = mlp_post @ self.W_out(layer).to(mlp_post) + (0.0 if b_out is None else b_out.to(mlp_post))
        return self._before_post_norm(self._post_norm(layer, "hook_mlp_out", "mlp"), output, direction)

    def values(self, layer: int, residual: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch kv_head d_head"]:
        """The `v` that attention makes of its block's input: the input norm at its own scale, W_V and b_V."""
        block = self._bridge.blocks[layer]
        normed = (
            residual
            if self._behind(layer, "hook_attn_out", "attn") == "ln1"
            else block.ln1.original_component(residual)
        )
        values: Tensor = block.attn.v.original_component(normed)
        return values.reshape(*values.shape[:-1], self._kv_heads, self._d_head)

    def attended_values(self, v: Float[Tensor, "*batch kv_head d_head"]) -> Float[Tensor, "*batch head d_head"]:
        """What each head mixes by its pattern into `z`: its KV head's `v`, clipped where the family clips it."""
        clip = getattr(self._config, "clip_qkv", None)
        v = v if clip is None else v.clamp(-clip, clip)
        return v.repeat_interleave(self._heads // self._kv_heads, dim=-2)

    def lone_heads(self, layer: int, z: Float[Tensor, "*batch head d_head"]) -> Float[Tensor, "*batch head d_model"]:
        """What each head would write on its own: through W_O and the post-norm at that head's own scale, no bias."""
        heads = torch.einsum("...hd,hdm->...hm", z, self.W_O(layer).to(z))
        norm = self._attention_post_norm(layer)
        return heads if norm is None else norm.linear(heads, norm.scale(heads))

    def normed(self, residual: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """The final norm's output, its own scale and bias included."""
        normed: Tensor = self._bridge.ln_final.original_component(residual)
        return normed

    def logits(self, residual: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocabulary"]:
        """A residual stream read as if it were the last: final norm at its own scale, unembedding, scale, soft cap."""
        return self._tail.logits(residual)

    def logit_directions(self, tokens: Int[Tensor, " token"]) -> Float[Tensor, "token d_model"]:
        """Rows of W_U^T for `tokens`, times `logit_scale`: dot products with the final norm's output give logits."""
        return self.W_U.T[tokens] * self.logit_scale

    def unembedded(self, directions: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocabulary"]:
        """Logits that one unit of each direction of the residual stream adds: the final norm's gain, no scale."""
        unit = torch.ones(1).to(self.W_U)
        return (self.final_norm.linear(directions.to(self.W_U), unit) @ self.W_U) * self.logit_scale

    def _projection(self, layer: int) -> Any:
        return self._bridge.blocks[layer].attn.o.original_component

    def _attention_post_norm(self, layer: int) -> Norm | None:
        return self._post_norm(layer, "hook_attn_out", "attn")

    def _post_norm(self, layer: int, hook: str, part: str) -> Norm | None:
        """The norm that the family puts between the output of a block's part and the residual stream."""
        component = self._behind(layer, hook, part)
        return None if component == part else self._norm(getattr(self._bridge.blocks[layer], component))

    def _behind(self, layer: int, hook: str, part: str) -> str:
        """The part of the block whose output is added to the residual stream: `part` itself, or a norm behind it."""
        name: str = self._bridge.blocks[layer].hook_aliases.get(hook, f"{part}.hook_out")
        return name.partition(".")[0]

    def _before_post_norm(
        self, norm: Norm | None, output: Float[Tensor, " d_model"], direction: Float[Tensor, " d_model"]
    ) -> Float[Tensor, " d_model"]:
        added = direction * float(getattr(self._config, "residual_multiplier", 1.0))
        return added if norm is None else norm.carried_back(added, norm.scale(output))

    def _mlp_projection(self, layer: int) -> Any:
        return self._bridge.blocks[layer].mlp.out.original_component

    def _norm(self, component: Any) -> Norm:
        width, _ = self.W_U.shape
        return _measured(component.original_component, self.W_U, width)


@torch.no_grad()
def _measured(module: Any, like: Tensor, width: int) -> Norm:
    """What a norm module computes, from what it does to three inputs: families write their norms in many ways."""
    signs = torch.randint(2, (width,), generator=torch.Generator().manual_seed(0)).to(like) * 2 - 1
    large, small = 1e3 * signs, 1e-3 * signs
    bias = module(torch.zeros_like(signs))
    kind: Literal["layer", "rms"] = "layer" if torch.allclose(module(large + 1e3), module(large), rtol=1e-3) else "rms"
    unit = Norm(kind, torch.ones_like(signs), None, eps=0.0)
    gain = (module(large) - bias) / unit.linear(large, unit.scale(large))
    widest = int(gain.abs().argmax())
    ratio = gain[widest] * unit.linear(small, torch.ones_like(small[:1]))[widest] / (module(small) - bias)[widest]
    eps = float(ratio.square() - unit.scale(small).square())
    return Norm(kind, gain, bias if bool(bias.any()) else None, eps)
