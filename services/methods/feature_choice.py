"""Features of an SAE changed one at a time: which, their exact effects, and the first-order estimates of the same.

1. the features named come first, in their order; then as many others as asked for, by |mean estimate|;
2. estimates and exact effects have the same axes: [subject, part], and by position [subject, part, position].
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64

from services.contracts.feature_site import ChosenFeature, EstimateCheck, FeatureChoice
from services.contracts.features import FeatureEffect
from services.contracts.tensor import InlineTensor, Statistic
from services.methods.context import MethodContext, SaeInUse
from services.methods.feature_check import compared_cells
from services.methods.feature_effects import effects_of
from services.methods.feature_estimates import Estimated, ranked
from services.methods.feature_parts import Part, exact_effects
from services.methods.feature_site import over_norm
from services.methods.metric import finite
from services.methods.statistics import estimate

Effects = Float64[np.ndarray, "subject part *position"]


def chosen_features(method: FeatureChoice, found: Sequence[Estimated], in_use: SaeInUse) -> tuple[ChosenFeature, ...]:
    """Those given, then the strongest of the others that change."""
    given = tuple(ChosenFeature(index=index, chosen="given") for index in method.features)
    if not method.top_features():
        return given
    others = [feature for feature in ranked(found, in_use) if feature.index not in method.features]
    top = others[: method.top_features()]
    for feature in top:
        finite(feature.estimated, "an estimated effect")
    return (*given, *(ChosenFeature(index=feature.index, chosen="top") for feature in top))


def promoted_logits(
    method: FeatureChoice, features: Sequence[ChosenFeature], in_use: SaeInUse, context: MethodContext
) -> tuple[FeatureEffect, ...]:
    """What the chosen features promote and suppress, as many tokens as were asked for."""
    indices = [feature.index for feature in features]
    return tuple(effects_of(indices, method.promoted_logits, in_use, context))


@dataclass(frozen=True, eq=False)
class ChangedParts:
    """The effects of some parts and then the features; `estimated` is None where the metric has no slope."""

    exact: Effects
    estimated: Effects | None
    parts: int

    @classmethod
    def of(
        cls,
        found: Sequence[Estimated],
        parts: Sequence[Part],
        features: Sequence[ChosenFeature],
        in_use: SaeInUse,
        context: MethodContext,
        *,
        by_position: bool,
        estimates: bool,
    ) -> "ChangedParts":
        every = (*parts, *(feature.index for feature in features))
        changes = [(one.subject, one.change) for one in found]
        exact = exact_effects(changes, every, in_use, context, by_position=by_position)
        first_order = [_estimates(one, parts, features, by_position=by_position) for one in found] if estimates else []
        return cls(exact, np.stack(first_order) if estimates else None, len(parts))

    @property
    def dims(self) -> tuple[str, ...]:
        """Of a part: by position or none."""
        return ("position",)[: self.exact.ndim - 2]

    def of_part(self, part: int) -> tuple[InlineTensor | Statistic, InlineTensor | Statistic | None]:
        """Its exact effects, and their estimates."""
        first_order = None if self.estimated is None else estimate(self.estimated[:, part], self.dims)
        return estimate(self.exact[:, part], self.dims), first_order

    def of_features(self) -> tuple[InlineTensor | Statistic, InlineTensor | Statistic | None]:
        dims = ("feature", *self.dims)
        first_order = None if self.estimated is None else estimate(self.estimated[:, self.parts :], dims)
        return estimate(self.exact[:, self.parts :], dims), first_order

    def of_subject(self, subject: int) -> tuple[InlineTensor, InlineTensor | None]:
        """The features' own on one subject."""
        dims = ("feature", *self.dims)
        first_order = None if self.estimated is None else InlineTensor.of(self.estimated[subject, self.parts :], dims)
        return InlineTensor.of(self.exact[subject, self.parts :], dims), first_order

    def check(self) -> EstimateCheck | None:
        """Of the features."""
        if self.estimated is None:
            return None
        return compared_cells(self.estimated[:, self.parts :], self.exact[:, self.parts :])


def _estimates(
    one: Estimated, parts: Sequence[Part], features: Sequence[ChosenFeature], *, by_position: bool
) -> Float64[np.ndarray, "part ..."]:
    every, error = one.of_all_features(), one.of_error()
    of_part = {"features": every, "error": error, "both": every + error}
    indices = torch.tensor([feature.index for feature in features], dtype=torch.long)
    rows = np.concatenate([np.stack([of_part[str(part)] for part in parts]), one.of_features(indices)])
    return rows if by_position else rows.sum(axis=1)


def warn_of_left_out(found: Sequence[Estimated], context: MethodContext, also: str = "") -> None:
    """Count the tokens that stayed as they are; `also` says why else than for their norm."""
    left_out = sum(len(one.change.left_out) for one in found)
    if left_out:
        context.warnings.append(f"{over_norm(left_out)}{also}: left untouched")
