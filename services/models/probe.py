"""Which sites of a model can be read and written: tried out, not believed.

A hook may be missing, or fire and ignore what is written to it. So every site is written once in every layer:

1. one batch whose row l is to be disturbed in layer l; the undisturbed batch gives the reference;
2. per site, a hook in every layer disturbs its own row with noise;
3. a site is writable when every row's final residual stream then differs from the reference.

`attn_out` and `mlp_out` must also be what is added to the residual stream, `attn_scores` must not be what `pattern`
shows, and `resid_mid` exists only where the MLP reads what attention has written. A model of attention alone has no MLP
and no site around one.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from services.contracts.model import SiteFacts
from services.contracts.site import SiteName
from services.models.hooks import Hook, hook_points, hooked
from services.models.load import LoadedModel

_TOKENS = 4
_AROUND_THE_MLP = {
    SiteName.RESID_MID: "resid_post",
    SiteName.MLP_OUT: "attn_out",
    SiteName.MLP_POST: "z",
}
"""Sites that a model of attention alone has not, and what comes closest."""
_ATTENTION = (SiteName.ATTN_SCORES, SiteName.PATTERN)
_NO_HOOK = "this model's {site} has no hook in every layer"
_IGNORED = "this model goes on without what is written to its {site} hook: {instead}"
_NO_MLP = "this model is attention alone, it has no MLP and so no {site}: use {instead}"
_AFTER_SOFTMAX = "this model's {site} hook shows the pattern, after the softmax: use pattern"
_NOT_ADDED = "what this model's {site} hook shows is not what is added to the residual stream"
_PARALLEL = (
    "attention and MLP read the same residual stream in this model, so there is none between them: use resid_pre"
)


def probe_sites(model: LoadedModel) -> tuple[SiteFacts, ...]:
    """What holds for every site, in the order of `SiteName`; takes one short batch per site."""
    return _Probe(model).facts()


def mlp_width(model: LoadedModel) -> int:
    """Neurons of one MLP, as its activations show them: configurations name them in too many ways. 0 without MLPs."""
    return 0 if model.bridge.cfg.attn_only else _Probe(model).width(SiteName.MLP_POST)


class _Stop(Exception):
    """Ends a forward pass before the unembedding."""


class _Probe:
    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._points = hook_points(model.bridge)
        self._layers = len(model.bridge.blocks)
        self._has_mlps = not model.bridge.cfg.attn_only
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(model.bridge.cfg.d_vocab, (1, _TOKENS), generator=generator)
        self._tokens = tokens.expand(self._layers, -1).to(model.device)
        self._generator = generator

    def facts(self) -> tuple[SiteFacts, ...]:
        reference = self._run(())
        added = self._is_added_to_the_residual_stream()
        return tuple(self._site_facts(site, reference, added) for site in SiteName)

    def _site_facts(self, site: SiteName, reference: Tensor, added: bool) -> SiteFacts:
        if not self._has_mlps and site in _AROUND_THE_MLP:
            reason = _NO_MLP.format(site=site, instead=_AROUND_THE_MLP[site])
            return SiteFacts(name=site, readable=False, writable=False, reason=reason)
        return self._resid_mid_facts(added=added) if site is SiteName.RESID_MID else self._facts(site, reference, added)

    def width(self, site: SiteName) -> int:
        seen: list[Tensor] = []
        self._run([(self._points[site, 0], _reader(seen))], rows=1)
        return seen[0].shape[-1]

    def _facts(self, site: SiteName, reference: Tensor, added: bool) -> SiteFacts:
        points = self._points_of(site)
        fired: set[int] = set()
        if points is not None:
            disturbed = self._run([(point, partial(self._disturb, site, row, fired)) for row, point in points])
        if points is None or len(fired) < len(points):
            return SiteFacts(name=site, readable=False, writable=False, reason=_NO_HOOK.format(site=site))
        if site is SiteName.ATTN_SCORES and self._scores_are_the_pattern():
            return SiteFacts(name=site, readable=False, writable=False, reason=_AFTER_SOFTMAX.format(site=site))
        if site in (SiteName.ATTN_OUT, SiteName.MLP_OUT) and not added:
            return SiteFacts(name=site, readable=False, writable=False, reason=_NOT_ADDED.format(site=site))
        difference = (disturbed - reference).abs().flatten(1).amax(1)[: len(points)]
        if not bool((difference > 1e-6 * reference.abs().max()).all()):
            instead = "change q, k, v or z instead" if site in _ATTENTION else "change the residual stream instead"
            reason = _IGNORED.format(site=site, instead=instead)
            return SiteFacts(name=site, readable=True, writable=False, reason=reason)
        return SiteFacts(name=site, readable=True, writable=True)

    def _resid_mid_facts(self, *, added: bool) -> SiteFacts:
        if not added or not self._mlp_reads_attention():
            reason = _PARALLEL if added else _NOT_ADDED.format(site=SiteName.ATTN_OUT)
            return SiteFacts(name=SiteName.RESID_MID, readable=False, writable=False, reason=reason)
        return SiteFacts(name=SiteName.RESID_MID, readable=True, writable=True)

    def _points_of(self, site: SiteName) -> list[tuple[int, HookPoint]] | None:
        places: Sequence[int | None] = [None] if site is SiteName.EMBED else range(self._layers)
        points = [(row, self._points.get((site, layer))) for row, layer in enumerate(places)]
        found = [(row, point) for row, point in points if point is not None]
        return found if len(found) == len(points) else None

    def _disturb(self, site: SiteName, row: int, fired: set[int], activation: Tensor) -> Tensor:
        fired.add(row)
        changed = activation.clone()
        if (
            site in _ATTENTION
        ):  # masked scores are huge: they are multiplied, and each differently, for norms undo a scale
            changed[row] *= 0.5 + torch.rand(changed[row].shape, generator=self._generator).to(changed)
        else:
            noise = torch.randn(changed[row].shape, generator=self._generator).to(changed)
            changed[row] += noise * changed[row].std()
        return changed

    def _is_added_to_the_residual_stream(self) -> bool:
        """Whether resid_pre + attn_out + mlp_out = resid_post in every layer, without mlp_out where there is no MLP."""
        mlp_out = (SiteName.MLP_OUT,) if self._has_mlps else ()
        sites = (SiteName.RESID_PRE, SiteName.ATTN_OUT, *mlp_out, SiteName.RESID_POST)
        if any((site, layer) not in self._points for site in sites for layer in range(self._layers)):
            return False
        seen: dict[tuple[SiteName, int | None], Tensor] = {}
        places = [(site, layer) for layer in range(self._layers) for site in sites]
        self._run([(self._points[place], partial(seen.__setitem__, place)) for place in places], rows=1)
        return len(seen) == len(places) and all(self._adds_up(seen, layer) for layer in range(self._layers))

    @staticmethod
    def _adds_up(seen: dict[tuple[SiteName, int | None], Tensor], layer: int) -> bool:
        parts = seen[SiteName.RESID_PRE, layer] + seen[SiteName.ATTN_OUT, layer]
        if (SiteName.MLP_OUT, layer) in seen:
            parts = parts + seen[SiteName.MLP_OUT, layer]
        whole = seen[SiteName.RESID_POST, layer]
        return torch.allclose(parts, whole, rtol=1e-3, atol=1e-4 * float(whole.abs().max()))

    def _scores_are_the_pattern(self) -> bool:
        """Whether the hook of the first layer's attn_scores fires with what that of its pattern does."""
        seen: list[Tensor] = []
        points = [self._points.get((site, 0)) for site in _ATTENTION]
        self._run([(point, _reader(seen)) for point in points if point is not None], rows=1)
        return len(seen) == len(_ATTENTION) and torch.equal(*seen)

    def _mlp_reads_attention(self) -> bool:
        """Whether a change of the first layer's attn_out reaches the same layer's mlp_out."""
        seen: list[Tensor] = []
        write = (self._points[SiteName.ATTN_OUT, 0], partial(self._disturb, SiteName.ATTN_OUT, 0, set()))
        read = (self._points[SiteName.MLP_OUT, 0], _reader(seen))
        self._run([read], rows=1)
        self._run([write, read], rows=1)
        return not torch.equal(*seen)

    @torch.no_grad()
    def _run(self, hooks: Sequence[tuple[HookPoint, Hook]], rows: int | None = None) -> Float[Tensor, "row position d"]:
        """The final residual stream of the batch under `hooks`."""
        final: list[Tensor] = []

        def stop(activation: Tensor) -> None:
            final.append(activation)
            raise _Stop

        last = self._points[SiteName.RESID_POST, self._layers - 1]
        try:
            with hooked([*hooks, (last, stop)]):
                self._model.bridge.original_model(self._tokens[:rows], use_cache=False)
        except _Stop:
            pass
        return final[0]


def _reader(seen: list[Tensor]) -> Callable[[Tensor], None]:
    def read(activation: Tensor) -> None:
        seen.append(activation)

    return read
