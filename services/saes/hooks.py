"""From the hook names of an SAE's files to lensd's sites: where it reads, and where it writes."""

import re
from dataclasses import dataclass

from services.contracts.site import SiteName

_HOOK = re.compile(r"blocks\.(\d+)\.(.+)")

_SITES = {
    "hook_out": SiteName.RESID_POST,
    "hook_resid_pre": SiteName.RESID_PRE,
    "hook_resid_mid": SiteName.RESID_MID,
    "hook_resid_post": SiteName.RESID_POST,
    "hook_attn_out": SiteName.ATTN_OUT,
    "hook_mlp_out": SiteName.MLP_OUT,
    "attn.hook_z": SiteName.Z,
}

_READ_BY_MLP = {"hook_mlp_in": False, "mlp.hook_in": True}
"""What transcoders of an MLP read: the residual stream in mid-layer; whether through the norm before the MLP."""

_ORDER = (
    SiteName.RESID_PRE,
    SiteName.Z,
    SiteName.ATTN_OUT,
    SiteName.RESID_MID,
    SiteName.MLP_OUT,
    SiteName.RESID_POST,
)
"""In which order a layer computes them."""


@dataclass(frozen=True)
class Place:
    """A site in a layer; `normed`: what is read there goes through the norm before the layer's MLP."""

    site: SiteName
    layer: int
    normed: bool = False

    def before(self, other: "Place") -> bool:
        """Whether the model computes this one first."""
        return (self.layer, _ORDER.index(self.site)) < (other.layer, _ORDER.index(other.site))


def place_of(hook_name: str, *, transcodes: bool = False) -> Place | None:
    """Where the hook is; None for one that lensd's SAEs (its transcoders, with `transcodes`) do not read."""
    match = _HOOK.fullmatch(hook_name)
    if match is None:
        return None
    layer, name = int(match[1]), match[2]
    if transcodes and name in _READ_BY_MLP:
        return Place(SiteName.RESID_MID, layer, _READ_BY_MLP[name])
    site = _SITES.get(name)
    return None if site is None or (transcodes and site is SiteName.Z) else Place(site, layer)
