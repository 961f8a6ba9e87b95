"""An SAE's features as parts of the model: what of the activation at its site becomes another run's, by feature.

1. at the SAE's site x = Σ f_i d_i + b_dec + ε; positions are those asked for at which the two runs can differ;
2. Δf = f_source − f_base, Δx = x_source − x_base, and the error's Δε = Δx − Σ Δf_i d_i, so that the parts add up to Δx;
3. without another run the source has neither features nor error: x_source = b_dec;
4. where features alone are given, they replace the base run's and the error stays: Δx = Σ Δf_i d_i;
5. a token over the SAE's norm threshold in either run is left untouched: all of its changes are zero.
"""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from services.contracts.inputs import TokenizedExample, TokenizedPair
from services.contracts.result import PromptTokens
from services.contracts.sweep import SweptPosition, index_of
from services.engine.row import Capture, Intervention, Row, Site
from services.methods.context import SaeInUse
from services.methods.metric import Measure

Activation = Float[Tensor, "position d_model"]


@dataclass(frozen=True)
class Subject:
    """A pair or an example: the base run, which is changed; the source run, if any; where changes are asked for."""

    base: PromptTokens
    source: PromptTokens | None
    measured: Measure
    asked: tuple[int, ...]
    positions: tuple[int, ...]

    @classmethod
    def of(
        cls,
        item: TokenizedPair | TokenizedExample,
        measured: Measure,
        mode: str,
        positions: tuple[SweptPosition, ...] | None,
    ) -> "Subject":
        if isinstance(item, TokenizedExample):
            length = len(item.prompt.ids)
            asked = tuple(range(length)) if positions is None else tuple(int(at) % length for at in positions)
            return cls(item.prompt, None, measured, asked, asked)
        base, source = (item.corrupted, item.clean) if mode == "denoising" else (item.clean, item.corrupted)
        length = len(base.ids)
        asked = tuple(range(length)) if positions is None else tuple(index_of(at, item) for at in positions)
        first = min(item.differing, default=length)
        return cls(base, source, measured, asked, tuple(at for at in asked if at >= first))


@dataclass(frozen=True, eq=False)
class Change:
    """What changes at `positions` of a base run, by position; features sparse, as most of them are zero.

    `axes` are the site's own: at `z` heads, which here stand side by side.
    """

    site: Site
    axes: tuple[int, ...]
    positions: tuple[int, ...]
    left_out: tuple[int, ...]
    features: Float[Tensor, "position d_sae"]
    error: Activation
    whole: Activation

    def add(self, value: Activation, at: tuple[int, ...] | None = None) -> tuple[Intervention, ...]:
        """`value` added at all of the positions, or at these; nothing where there are none."""
        positions = self.positions if at is None else at
        added = value.reshape(len(positions), *self.axes)
        return (Intervention(self.site, positions, "add", added),) if positions else ()

    def of_features(self, indices: Tensor) -> Float[Tensor, "position feature"]:
        return self.features.index_select(1, indices).to_dense()


def site_of(in_use: SaeInUse) -> Capture:
    """The activation that the SAE reads."""
    return Capture(Site(in_use.facts.site, in_use.facts.layer))


def row_of(tokens: PromptTokens, subject: Subject, site: Capture) -> Row:
    """An unpatched run with its activation at the SAE's site and its metric."""
    return Row(tokens.ids, captures=(site,), readout=subject.measured.readout)


def change_of(subject: Subject, base: Activation, source: Activation | None, in_use: SaeInUse) -> Change:
    """What turns the base run's activation into the source's; each given at all positions, as it was captured."""
    sae, at = in_use.sae, list(subject.positions)
    x = base[at].flatten(1).to(sae.W_enc)
    other = sae.b_dec.expand_as(x) if source is None else source[at].flatten(1).to(x)
    counted, features = sae.within_norm(x), sae.encode(x)
    changed = -features
    if source is not None:
        counted = counted & sae.within_norm(other)
        changed = sae.encode(other) - features
    return _change(subject, base.shape[1:], counted, changed, other - x, in_use=in_use)


def change_of_features(
    subject: Subject,
    base: Activation,
    features: Float[Tensor, "#position d_sae"],
    known: Bool[Tensor, "#position"],
    in_use: SaeInUse,
) -> Change:
    """What turns the base run's features into these and leaves the error; `features` are of the subject's positions, or
    one for all of them, and those that are not `known` change nothing."""
    sae = in_use.sae
    x = base[list(subject.positions)].flatten(1).to(sae.W_enc)
    changed = features - sae.encode(x)
    return _change(subject, base.shape[1:], sae.within_norm(x) & known, changed, changed @ sae.W_dec, in_use=in_use)


def _change(
    subject: Subject,
    axes: tuple[int, ...],
    counted: Bool[Tensor, " position"],
    features: Float[Tensor, "position d_sae"],
    whole: Activation,
    *,
    in_use: SaeInUse,
) -> Change:
    """The change at the positions that count, and none at the others."""
    features, whole = features * counted[:, None], whole * counted[:, None]
    kept = zip(subject.positions, counted.tolist(), strict=True)
    return Change(
        site=site_of(in_use).site,
        axes=tuple(axes),
        positions=subject.positions,
        left_out=tuple(position for position, counts in kept if not counts),
        features=features.cpu().to_sparse(),
        error=(whole - features @ in_use.sae.W_dec).cpu(),
        whole=whole.cpu(),
    )


def over_norm(count: int, what: str = "token", where: str = "") -> str:
    """The beginning of a warning: how many are over the SAE's norm threshold, `where` says of which."""
    verb = "is" if count == 1 else "are"
    return f"{count} {what}{'' if count == 1 else 's'}{where} {verb} over the SAE's norm threshold"
