"""Where in a model something is read or written: the field's names.

Each name stands for a hook point of TransformerLens in one block. A head's part of `z` is that head's output before
W_O; `resid_pre` of layer 0 is the embedding.
"""

from enum import StrEnum


class SiteName(StrEnum):
    EMBED = "embed"
    RESID_PRE = "resid_pre"
    RESID_MID = "resid_mid"
    RESID_POST = "resid_post"
    ATTN_OUT = "attn_out"
    MLP_OUT = "mlp_out"
    MLP_POST = "mlp_post"
    Q = "q"
    K = "k"
    V = "v"
    Z = "z"
    ATTN_SCORES = "attn_scores"
    PATTERN = "pattern"


HEAD_SITES = (SiteName.Q, SiteName.K, SiteName.V, SiteName.Z, SiteName.ATTN_SCORES, SiteName.PATTERN)
"""Sites with one activation per head (per KV head for `k` and `v`)."""

KV_SITES = (SiteName.K, SiteName.V)
"""Sites with one activation per key-value head."""
