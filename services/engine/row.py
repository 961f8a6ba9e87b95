"""A forward pass as data: what to run, what to change in it, what to take from it.

A `Row` holds no callback, so the engine may put rows of different jobs into one batch. Positions are absolute, from 0,
without negatives; layers count from 0. An activation has the site's own axes after the position:

    site                                                axes after `position`
    embed, resid_pre, resid_mid, resid_post             [d_model]
    attn_out, mlp_out                                   [d_model]: what is added to the residual stream
    mlp_post                                            [d_mlp]
    q, z                                                [head, d_head]
    k, v                                                [kv_head, d_head]
    attn_scores, pattern                                [head, key]: `position` is the query's, `key` all of the row's

With `Site.head` given, the head axis is gone. `q` and `k` are read before rotary embeddings and before query and key
norms, as TransformerLens has them.
"""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor

from services.contracts.site import SiteName
from services.engine.objective import Objective
from services.engine.readout import Readout


@dataclass(frozen=True)
class Site:
    """One place in the model. `layer` is None for `embed` alone; `head` is a KV head for `k` and `v`."""

    name: SiteName
    layer: int | None = None
    head: int | None = None


@dataclass(frozen=True)
class FromRun:
    """The activation at the same site and positions in the unpatched run of these tokens."""

    tokens: tuple[int, ...]


@runtime_checkable
class Dictionary(Protocol):
    """What changing features needs of an SAE: see `services.saes.sae`, which is one."""

    @property
    def W_dec(self) -> Float[Tensor, "d_sae d_model"]: ...

    def within_norm(self, x: Float[Tensor, "token d_model"]) -> Bool[Tensor, " token"]: ...

    def encode_columns(
        self, x: Float[Tensor, "token d_model"], indices: tuple[int, ...]
    ) -> Float[Tensor, "token feature"]: ...


@dataclass(frozen=True, eq=False)
class FeatureChange:
    """x + Σ α d over the features `added`, each by its α, + Σ (v − f(x)) d over those `clamped`, each to its v, − the
    part of x in the span of the d of those `projected_out`; of one alone that is (x·d̂) d̂.

    d is a feature's decoder row. Every f, and every such part, is that of the activation as it comes to the site:
    nothing is encoded again after a change, and what the dictionary does not explain of x stays, unless it lies along
    what is projected out. Positions at which x is longer than the dictionary's norm threshold stay as they are. At
    sites with heads x is all heads, one after another.
    """

    dictionary: Dictionary
    added: tuple[tuple[int, float], ...] = ()
    clamped: tuple[tuple[int, float], ...] = ()
    projected_out: tuple[int, ...] = ()


Operation = Literal["set", "add", "scale", "project_out", "change_features"]

Value = Tensor | float | FromRun | FeatureChange
"""A tensor `[position, ...]` or one without the position axis for all positions alike; a number; another run's; how
features change."""


@dataclass(frozen=True, eq=False)
class Intervention:
    """Change the activation at `site`: replace it, add to it, multiply it, or project a direction out of it.

    `project_out` is x − (x·d̂) d̂ along the last axis, d̂ the value made one long; a `FeatureChange` goes with
    `change_features`, and with nothing else. `positions` of None means every position of the row. Interventions of one
    row at one site apply in their order.
    """

    site: Site
    positions: tuple[int, ...] | None
    operation: Operation
    value: Value


@dataclass(frozen=True)
class Capture:
    """Take the activation at `site`, after the row's interventions there; None takes every position."""

    site: Site
    positions: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Gradients:
    """Take the gradient of `objective` at `sites`, after the row's interventions there.

    It has the axes of a capture: at one position of one site, what the objective gains per unit of each coordinate by
    every path from there to the readout.
    """

    objective: Objective
    sites: tuple[Capture, ...]


@dataclass(frozen=True, eq=False)
class Row:
    """One forward pass over `tokens`, and one backward when it asks for gradients.

    A row without a readout stops after the last layer that a capture needs. Gradients are of a function of the readout.
    """

    tokens: tuple[int, ...]
    interventions: tuple[Intervention, ...] = ()
    captures: tuple[Capture, ...] = ()
    readout: Readout | None = None
    gradients: Gradients | None = None
