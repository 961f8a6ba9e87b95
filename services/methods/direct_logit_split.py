"""Direct logit terms of an SAE's features: the activation at its site, split at the metric's position.

1. x = Σ f_i d_i + b_dec + ε; u, the metric's direction carried back through the final norm at the run's scale, gives
   each part its term: f_i (d_i · u), b_dec · u, ε · u; of a token over the SAE's norm threshold x · u as a whole;
2. what is not in x keeps the terms that it has: of a residual stream the layers behind the site, of attn_out and
   mlp_out everything but that layer's attention or MLP; of z, which writes through W_O, all but that layer's heads;
3. all of them must add up to the metric;
4. for every feature that is listed, f_i d_i is taken out of the last residual stream: at the run's scale the metric
   falls by the term; with the norm's own scale it says what holding the scale leaves out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from services.contracts.direct_logit_attribution import DirectLogitAttribution
from services.contracts.direct_logit_features import FeatureContribution, FeatureSplit, SplitExample
from services.contracts.site import SiteName
from services.engine.weights import Norm, Weights
from services.methods.context import MethodContext, SaeInUse
from services.methods.direct_logit_terms import Aim, MeanTerms, Terms
from services.methods.feature_effects import effects_of
from services.methods.statistics import scalar_estimate

Vector = Float[Tensor, " d_model"]
Contributions = Float64[np.ndarray, " feature"]


@dataclass(frozen=True, eq=False)
class _Split:
    """One example: the features that fire, with what removing them does, and the parts' terms; all in float64."""

    features: Int64[Tensor, " active"]
    activations: Float[Tensor, " active"]
    contributions: Float[Tensor, " active"]
    removed: Float[Tensor, " active"]
    removed_at_held_scale: Float[Tensor, " active"]
    b_dec: float
    error: float
    over_norm: float | None
    metric: float
    outside: Terms

    @property
    def sum(self) -> float:
        parts = float(self.contributions.sum()) + self.b_dec + self.error + (self.over_norm or 0.0)
        return parts + self.outside.sum

    @property
    def magnitude(self) -> float:
        parts = float(self.contributions.abs().sum()) + sum(map(abs, (self.b_dec, self.error, self.over_norm or 0.0)))
        return parts + self.outside.magnitude

    def at(self, values: Float[Tensor, " active"], chosen: Sequence[int]) -> Contributions:
        """`values` of these features; zero for those that do not fire here."""
        known = dict(zip(self.features.tolist(), values.tolist(), strict=True))
        return np.array([known.get(index, 0.0) for index in chosen])


@dataclass(frozen=True, eq=False)
class FeatureTerms:
    """The splits of all examples, as they come."""

    in_use: SaeInUse
    weights: Weights
    context: MethodContext
    outside: MeanTerms = field(default_factory=MeanTerms)
    splits: list[_Split] = field(default_factory=list)

    def add(self, x: Float[Tensor, "..."], final: Vector, aimed: Aim, metric: float, terms: Terms) -> float:
        """One more example: the site's activation, the last residual stream and the terms at the metric's position.

        Returns how far the split's sum is from the metric, in parts of the sum of its magnitudes.
        """
        sae, norm = self.in_use.sae, self.weights.final_norm
        direction = norm.carried_back(aimed.direction, norm.scale(final)).double()
        read = x.reshape(1, -1).to(sae.W_enc)
        within = bool(sae.within_norm(read))
        encoded = sae.encode(read)[0] * within
        features = encoded.nonzero().flatten()
        activations = encoded[features].to(direction)
        parts = torch.cat([read, sae.b_dec[None], sae.W_dec[features]]).to(direction)
        whole, b_dec, *_ = written = self._written(parts, x)
        directions = written[2:]
        error = whole - activations @ directions - b_dec
        removed, held = _removed(activations[:, None] * directions, final.double(), aimed.direction.double(), norm)
        split = _Split(
            features=features,
            activations=activations,
            contributions=activations * (directions @ direction),
            removed=removed,
            removed_at_held_scale=held,
            b_dec=float(b_dec @ direction) * within,
            error=float(error @ direction) * within,
            over_norm=None if within else float(whole @ direction),
            metric=metric,
            outside=outside(terms, self.in_use.facts.site, self.in_use.facts.layer),
        )
        self.outside.add(split.outside)
        self.splits.append(split)
        return abs(metric - split.sum) / max(split.magnitude, 1e-30)

    def _written(self, parts: Float[Tensor, "part d_site"], x: Float[Tensor, "..."]) -> Float[Tensor, "part d_model"]:
        """What parts of the site's activation x add to the residual stream: themselves, of heads through W_O."""
        if self.in_use.facts.site is not SiteName.Z:
            return parts
        return self.weights.written_by_heads(self.in_use.facts.layer, x.to(parts), parts.reshape(-1, *x.shape))

    def over_norm(self) -> int:
        """How many examples' tokens are over the SAE's norm threshold."""
        return sum(split.over_norm is not None for split in self.splits)

    def reported(self, method: DirectLogitAttribution, *, per_example: bool) -> FeatureSplit:
        """The `top_k` features of largest |mean|, and everything else."""
        facts, splits = self.in_use.facts, self.splits
        totals: dict[int, float] = {}
        for split in splits:
            for index, value in zip(split.features.tolist(), split.contributions.tolist(), strict=True):
                totals[index] = totals.get(index, 0.0) + value
        chosen = sorted(totals, key=lambda index: (-abs(totals[index]), index))[: method.top_k]
        own = np.stack([split.at(split.contributions, chosen) for split in splits])
        others = np.array([float(split.contributions.sum()) for split in splits]) - own.sum(axis=1)
        return FeatureSplit(
            sae=facts.id,
            site=facts.site,
            layer=facts.layer,
            features=tuple(self._contributions(chosen, own)),
            active=len(totals),
            other_features=scalar_estimate(others),
            b_dec=scalar_estimate(np.array([split.b_dec for split in splits])),
            error=scalar_estimate(np.array([split.error for split in splits])),
            over_norm=scalar_estimate(np.array([split.over_norm or 0.0 for split in splits])),
            outside=self.outside.reported(),
            examples=tuple(
                SplitExample(
                    over_norm=split.over_norm is not None,
                    sum_of_terms=split.sum,
                    gap=abs(split.metric - split.sum),
                    features=tuple(values.tolist()) if per_example else None,
                )
                for split, values in zip(splits, own, strict=True)
            ),
            promoted_logits=tuple(effects_of(chosen, method.promoted_logits, self.in_use, self.context)),
        )

    def _contributions(
        self, chosen: Sequence[int], own: Float64[np.ndarray, "example feature"]
    ) -> Iterator[FeatureContribution]:
        activations = np.stack([split.at(split.activations, chosen) for split in self.splits])
        exact = np.stack([split.at(split.removed, chosen) for split in self.splits])
        held = np.stack([split.at(split.removed_at_held_scale, chosen) for split in self.splits])
        for place, index in enumerate(chosen):
            yield FeatureContribution(
                index=index,
                activation=scalar_estimate(activations[:, place]),
                contribution=scalar_estimate(own[:, place]),
                removed=scalar_estimate(exact[:, place]),
                removed_at_held_scale=scalar_estimate(held[:, place]),
            )


def _removed(
    written: Float[Tensor, "active d_model"], final: Vector, direction: Vector, norm: Norm
) -> tuple[Float[Tensor, " active"], Float[Tensor, " active"]]:
    """What the metric changes by when each of these is taken out of the last residual stream: with the norm's own new
    scale, and with the run's."""
    left, scale = final - written, norm.scale(final)
    before = norm.linear(final, scale) @ direction
    exact = norm.linear(left, norm.scale(left)) @ direction - before
    return exact, norm.linear(left, scale) @ direction - before


def outside(terms: Terms, site: SiteName, layer: int) -> Terms:
    """The terms of what an activation does not hold, zeros in the place of what it does."""
    stream = site in (SiteName.RESID_PRE, SiteName.RESID_MID, SiteName.RESID_POST)
    attention = {SiteName.RESID_PRE: layer, SiteName.MLP_OUT: 0}.get(site, layer + 1)
    mlps = {SiteName.RESID_POST: layer + 1, SiteName.ATTN_OUT: 0, SiteName.Z: 0, SiteName.MLP_OUT: layer + 1}.get(
        site, layer
    )
    first = 0 if stream else layer
    heads, attention_bias, mlp_terms = (array.copy() for array in (terms.heads, terms.attention_bias, terms.mlps))
    heads[first:attention], mlp_terms[first:mlps] = 0.0, 0.0
    if site is not SiteName.Z:
        attention_bias[first:attention] = 0.0
    embedding = np.zeros_like(terms.embedding) if stream else terms.embedding
    return replace(terms, embedding=embedding, heads=heads, attention_bias=attention_bias, mlps=mlp_terms)
