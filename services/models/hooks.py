"""Sites as the bridge's hook points, and hooks that never outlive their block.

`resid_mid` has no hook of its own here: where it exists the bridge's is the second norm's input, and a write there
misses the residual stream. It is resid_pre + attn_out instead, and is written through attn_out.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge

from services.contracts.site import SiteName

Hook = Callable[[Tensor], Tensor | None]
"""Gets the activation; what it returns takes the activation's place, None leaves it."""

_IN_BLOCK = {
    SiteName.RESID_PRE: "hook_in",
    SiteName.RESID_POST: "hook_out",
    SiteName.ATTN_OUT: "hook_attn_out",
    SiteName.MLP_OUT: "hook_mlp_out",
    SiteName.MLP_POST: "mlp.hook_post",
    SiteName.Q: "attn.hook_q",
    SiteName.K: "attn.hook_k",
    SiteName.V: "attn.hook_v",
    SiteName.Z: "attn.hook_z",
    SiteName.ATTN_SCORES: "attn.hook_attn_scores",
    SiteName.PATTERN: "attn.hook_pattern",
}


def hook_name(site: SiteName, layer: int | None) -> str:
    """The bridge's name for a site's hook point."""
    if site is SiteName.EMBED:
        return "embed.hook_out"
    return f"blocks.{layer}.{_IN_BLOCK[site]}"


def hook_points(bridge: TransformerBridge) -> dict[tuple[SiteName, int | None], HookPoint]:
    """Every site's hook point that this model has, by site and layer."""
    known = bridge.hook_dict
    places = [(SiteName.EMBED, None)] + [(site, layer) for layer in range(len(bridge.blocks)) for site in _IN_BLOCK]
    return {place: known[hook_name(*place)] for place in places if hook_name(*place) in known}


@contextmanager
def hooked(hooks: Iterable[tuple[HookPoint, Hook]], *, differentiable: bool = False) -> Iterator[None]:
    """Keep `hooks` in place for the block; hooks of one point run in their order.

    When `differentiable`, what hooks return takes the activation's place even where the numbers are the same: the
    bridge's Granite blocks would drop it, unless the point claims a backward hook.
    """
    placed = []
    try:
        for point, hook in hooks:
            point.add_hook(_as_the_bridge_calls(hook))
            placed.append((point, point.fwd_hooks[-1]))
            if differentiable:
                point.bwd_hooks.append(point.fwd_hooks[-1])
        yield
    finally:
        for point, handle in placed:
            handle.hook.remove()
            point.fwd_hooks.remove(handle)
            if differentiable:
                point.bwd_hooks.remove(handle)


def _as_the_bridge_calls(function: Hook) -> Callable[..., Any]:
    def call(activation: Tensor, hook: Any) -> Tensor | None:
        return function(activation)

    return call
