"""One place in a model as a client names it, and what a model may lack of what is named."""

import re
from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from services.contracts.base import Head, Layer, Position, Request
from services.contracts.errors import ErrorCode, Violation
from services.contracts.model import ModelFacts
from services.contracts.site import HEAD_SITES, KV_SITES, SiteName

_HOOK = re.compile(r"blocks\.(\d{1,4})\.(.+)")
_HOOKS_IN_BLOCK = {
    "hook_resid_pre": SiteName.RESID_PRE,
    "hook_in": SiteName.RESID_PRE,
    "hook_resid_mid": SiteName.RESID_MID,
    "hook_resid_post": SiteName.RESID_POST,
    "hook_out": SiteName.RESID_POST,
    "hook_attn_out": SiteName.ATTN_OUT,
    "hook_mlp_out": SiteName.MLP_OUT,
    "mlp.hook_post": SiteName.MLP_POST,
    "attn.hook_q": SiteName.Q,
    "attn.hook_k": SiteName.K,
    "attn.hook_v": SiteName.V,
    "attn.hook_z": SiteName.Z,
    "attn.hook_attn_scores": SiteName.ATTN_SCORES,
    "attn.hook_pattern": SiteName.PATTERN,
}
_HOOKS_OF_EMBED = ("hook_embed", "embed.hook_out")

SiteText = Annotated[str, Field(min_length=1, max_length=64, examples=["resid_post", "z", "blocks.9.attn.hook_z"])]
"""A site's name, or a TransformerLens hook name, which carries its layer."""


class Place(Request):
    """One site of one layer, for one head or all of them, at some positions or (null) all.

    `layer` is left out for `embed`, and where `site` is a hook name. For `k` and `v` heads are KV heads.
    """

    site: SiteText
    layer: Layer | None = None
    head: Head | None = None
    positions: Annotated[tuple[Position, ...] | None, Field(min_length=1, max_length=4_096)] = None

    def located(self) -> tuple[SiteName, int | None]:
        """The site and its layer; raises KeyError for a name that no site has."""
        if self.site in _HOOKS_OF_EMBED:
            return SiteName.EMBED, None
        if self.site in SiteName.__members__.values():
            return SiteName(self.site), self.layer
        matched = _HOOK.fullmatch(self.site)
        if matched is None:
            raise KeyError(self.site)
        return _HOOKS_IN_BLOCK[matched[2]], int(matched[1])

    def violations(self, facts: ModelFacts, pointer: str, *, write: bool) -> Iterator[Violation]:
        """What this model lacks of it; `write` for places that are to be changed."""
        try:
            site, layer = self.located()
        except KeyError:
            message = (
                f"there is no site or hook {self.site!r}: sites are {', '.join(SiteName)}, hooks are named as "
                "blocks.0.attn.hook_z"
            )
            yield Violation(f"{pointer}/site", ErrorCode.UNKNOWN_SITE, message)
            return
        yield from site_violations(site, facts, f"{pointer}/site", write=write)
        if self.layer is not None and layer != self.layer:
            message = f"{self.site} is in layer {layer}: leave `layer` out" if layer is not None else _NO_LAYER
            yield Violation(f"{pointer}/layer", ErrorCode.UNKNOWN_LAYER, message)
        elif layer is None and site is not SiteName.EMBED:
            yield Violation(f"{pointer}/layer", ErrorCode.UNKNOWN_LAYER, f"{site} is in every layer: name one")
        elif layer is not None and site is SiteName.EMBED:
            yield Violation(f"{pointer}/layer", ErrorCode.UNKNOWN_LAYER, _NO_LAYER)
        elif layer is not None:
            where = f"{pointer}/layer" if self.layer is not None else f"{pointer}/site"
            yield from layer_violations((layer,), facts, where)
        if self.head is not None:
            yield from head_violations((self.head,), site, facts, f"{pointer}/head")

    def position_violations(self, lengths: tuple[int, ...], pointer: str) -> Iterator[Violation]:
        """Positions that some prompt of these lengths does not have, or that are the same one."""
        shortest = min(lengths)
        for index, position in enumerate(self.positions or ()):
            if not -shortest <= position < shortest:
                message = f"position {position} does not exist in a prompt of {shortest} tokens: 0..{shortest - 1}"
                yield Violation(f"{pointer}/positions/{index}", ErrorCode.UNKNOWN_POSITION, message)
                return
        for length in set(lengths):
            if len({position % length for position in self.positions or ()}) < len(self.positions or ()):
                message = f"two of these positions are the same one in a prompt of {length} tokens"
                yield Violation(f"{pointer}/positions", ErrorCode.UNKNOWN_POSITION, message)
                return

    def indices(self, length: int) -> tuple[int, ...] | None:
        """The positions as indices into a prompt of `length` tokens; None for all."""
        return None if self.positions is None else tuple(position % length for position in self.positions)


_NO_LAYER = "embed comes before the layers: leave `layer` out"


def heads_of(site: str, facts: ModelFacts) -> int:
    """How many heads a site has in this model; 0 for sites without."""
    if site not in HEAD_SITES:
        return 0
    return facts.kv_heads if site in KV_SITES else facts.heads


def width_of(site: str, facts: ModelFacts) -> int:
    """How many numbers an SAE reads of a token there: all heads side by side at `z`, else the residual stream's."""
    return facts.heads * facts.d_head if site == SiteName.Z else facts.d_model


def site_violations(site: str, facts: ModelFacts, pointer: str, *, write: bool) -> Iterator[Violation]:
    """A site that this model cannot read, or cannot write."""
    known = next((known for known in facts.sites if known.name == site), None)
    if known is not None and not (known.writable if write else known.readable):
        verb = "patch" if write else "read"
        yield Violation(pointer, ErrorCode.UNKNOWN_SITE, f"{facts.id} cannot {verb} {known.name}: {known.reason}")


def layer_violations(layers: tuple[int, ...], facts: ModelFacts, pointer: str) -> Iterator[Violation]:
    """Layers that do not exist. A single one is at `pointer` itself when that names a `layer` or a `site`."""
    for index, layer in enumerate(layers):
        if layer >= facts.layers:
            message = f"layer {layer} does not exist: {facts.id} has layers 0..{facts.layers - 1}"
            where = f"{pointer}/{index}" if pointer.endswith("/layers") else pointer
            yield Violation(where, ErrorCode.UNKNOWN_LAYER, message)


def head_violations(heads: tuple[int, ...], site: str, facts: ModelFacts, pointer: str) -> Iterator[Violation]:
    """Heads that `site` does not have, at `pointer` or, for `heads`, at their index below it."""
    count = heads_of(site, facts)
    if not count:
        message = f"{site} has no heads: sites with heads are {', '.join(HEAD_SITES)}"
        yield Violation(pointer, ErrorCode.UNKNOWN_HEAD, message)
        return
    for index, head in enumerate(heads):
        if head >= count:
            message = f"head {head} does not exist: {site} of {facts.id} has heads 0..{count - 1}"
            where = f"{pointer}/{index}" if pointer.endswith("/heads") else pointer
            yield Violation(where, ErrorCode.UNKNOWN_HEAD, message)
