"""The independent reference: plain transformers in float64, one whole forward pass per question, with PyTorch's hooks.

Nothing of lensd or TransformerLens takes part. Sites are found in Hugging Face's modules by name.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor
from transformers import AutoModelForCausalLM

Change = Callable[[Tensor], Tensor]
Place = tuple[str, int]
Logits = Float64[Tensor, "position vocabulary"]


@dataclass(frozen=True)
class _Layout:
    """Where a family keeps its parts: blocks, and within a block attention, its projections, and the modules whose
    outputs are added to the residual stream. `inputs` names the projections to q, k and v, one each or one for all."""

    blocks: str
    attention: str
    inputs: tuple[str, ...]
    projection: str
    adds_attention: str
    adds_mlp: str
    final_norm: str


_SPLIT = ("q_proj", "k_proj", "v_proj")
_MODERN = _Layout("model.layers", "self_attn", _SPLIT, "o_proj", "self_attn", "mlp", "model.norm")
_LAYOUTS = {
    "llama": _MODERN,
    "mistral": _MODERN,
    "qwen2": _MODERN,
    "qwen3": _MODERN,
    "gemma2": _Layout(
        "model.layers",
        "self_attn",
        _SPLIT,
        "o_proj",
        "post_attention_layernorm",
        "post_feedforward_layernorm",
        "model.norm",
    ),
    "gpt2": _Layout("transformer.h", "attn", ("c_attn",), "c_proj", "attn", "mlp", "transformer.ln_f"),
    "gpt_neox": _Layout(
        "gpt_neox.layers", "attention", ("query_key_value",), "dense", "attention", "mlp", "gpt_neox.final_layer_norm"
    ),
}


class Reference:
    """A model in float64. `changes` map (site, layer) to a function on that site's activation [position, d]."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
        self.model.eval()
        self.layout = _LAYOUTS[self.model.config.model_type]
        self.blocks: list[Any] = list(self.model.get_submodule(self.layout.blocks))

    @property
    def d_head(self) -> int:
        config = self.model.config
        return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)

    def logits(self, tokens: Sequence[int], changes: Mapping[Place, Change] | None = None) -> Logits:
        with torch.no_grad(), self._changed(changes or {}):
            found: Tensor = self.model(torch.tensor([list(tokens)])).logits[0]
        return found

    def activations(self, tokens: Sequence[int], places: Sequence[Place]) -> dict[Place, Tensor]:
        """Unpatched activations [position, d]; `z` has all heads side by side."""
        taken: dict[Place, Tensor] = {}

        def taker(place: Place) -> Change:
            def take(activation: Tensor) -> Tensor:
                taken[place] = activation.clone()
                return activation

            return take

        self.logits(tokens, {place: taker(place) for place in places})
        return taken

    def gradients(
        self,
        tokens: Sequence[int],
        places: Sequence[Place],
        metric: Callable[[Logits], Tensor],
        stopped: Sequence[Place] = (),
    ) -> dict[Place, Tensor]:
        """∂metric/∂activation [position, d] at `places`; no gradient passes the `stopped` places."""
        leaves: dict[Place, Tensor] = {}

        def tap(place: Place) -> Change:
            def add(activation: Tensor) -> Tensor:
                leaves[place] = torch.zeros_like(activation).requires_grad_()
                tapped = activation + leaves[place]
                return tapped.detach() if place in stopped else tapped

            return add

        with self._changed({place: tap(place) for place in (*places, *stopped)}):
            value = metric(self.model(torch.tensor([list(tokens)])).logits[0])
        found = torch.autograd.grad(
            value, [leaves[place] for place in places], materialize_grads=True, allow_unused=True
        )
        return dict(zip(places, found, strict=True))

    def patched(
        self, target: Sequence[int], source: Sequence[int], place: Place, position: int | None, head: int | None
    ) -> Logits:
        """The target run with one activation from the source run; `position` of None patches all, `head` slices z."""
        donor = self.activations(source, [place])[place]
        positions = slice(None) if position is None else slice(position, position + 1)
        columns = slice(None) if head is None else slice(head * self.d_head, (head + 1) * self.d_head)

        def change(activation: Tensor) -> Tensor:
            changed = activation.clone()
            changed[positions, columns] = donor[positions, columns]
            return changed

        return self.logits(target, {place: change})

    def module(self, place: Place) -> tuple[Any, bool]:
        """The module that carries a site, and whether it does so at its input."""
        site, layer = place
        block = self.blocks[layer]
        match site:
            case "resid_pre" | "resid_post":
                return block, site == "resid_pre"
            case "attn_out":
                return block.get_submodule(self.layout.adds_attention), False
            case "mlp_out":
                return block.get_submodule(self.layout.adds_mlp), False
            case "z":
                return self.projection(layer), True
            case "mlp_in":
                return block.get_submodule("mlp"), True
            case _:
                own = self.layout.inputs["qkv".index(site) % len(self.layout.inputs)]
                return block.get_submodule(f"{self.layout.attention}.{own}"), False

    def columns(self, site: str, head: int) -> slice:
        """Where one head's q, k, v or z lies in the activation of its site."""
        width, part = self.d_head, "qkv".find(site)
        match self.layout.inputs:
            case ("c_attn",) if part >= 0:  # all queries, then all keys, then all values
                first = part * self.model.config.hidden_size + head * width
            case ("query_key_value",) if part >= 0:  # head after head, each with its query, key and value
                first = (3 * head + part) * width
            case _:
                first = head * width
        return slice(first, first + width)

    def projection(self, layer: int) -> Any:
        return self.blocks[layer].get_submodule(f"{self.layout.attention}.{self.layout.projection}")

    @contextmanager
    def _changed(self, changes: Mapping[Place, Change]) -> Iterator[None]:
        handles = [self._hook(place, change) for place, change in changes.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, place: Place, change: Change) -> Any:
        module, at_input = self.module(place)
        if at_input:

            def before(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
                if arguments:
                    return (change(arguments[0][0])[None], *arguments[1:]), named
                return arguments, {**named, "hidden_states": change(named["hidden_states"][0])[None]}

            return module.register_forward_pre_hook(before, with_kwargs=True)

        def after(_: Any, __: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (change(output[0][0])[None], *output[1:])
            return change(output[0])[None]

        return module.register_forward_hook(after)
