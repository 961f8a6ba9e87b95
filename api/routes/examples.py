"""The jobs shown in the API's documentation: one of each kind, ready to be sent."""

from collections.abc import Mapping
from typing import Any

_CLEAN = "When John and Mary went to the shops, John gave the bag to"
_CORRUPTED = "When John and Mary went to the shops, Mary gave the bag to"

JOBS: Mapping[str, Mapping[str, Any]] = {
    "patching": {
        "kind": "patching",
        "model": "smollm2-135m",
        "method": {"type": "activation_patching", "site": "resid_pre", "mode": "denoising"},
        "pairs": [{"clean": _CLEAN, "corrupted": _CORRUPTED, "answer": " Mary", "foil": " John"}],
        "metric": {"type": "logit_diff"},
    },
    "attribution": {
        "kind": "attribution",
        "model": "smollm2-135m",
        "method": {"type": "direct_logit_attribution"},
        "examples": [{"prompt": _CLEAN, "answer": " Mary", "foil": " John"}],
        "metric": {"type": "logit_diff"},
    },
    "features": {
        "kind": "features",
        "model": "smollm2-135m",
        "sae": "smollm2-135m-l15-resid-post",
        "prompts": ["The Eiffel Tower is in Paris"],
        "top_k": 10,
    },
    "ablation": {
        "kind": "ablation",
        "model": "smollm2-135m",
        "method": {
            "type": "mean_ablation",
            "site": "z",
            "references": [_CLEAN, _CORRUPTED],
        },
        "examples": [{"prompt": _CLEAN, "answer": " Mary", "foil": " John"}],
        "metric": {"type": "logit_diff"},
    },
    "intervention": {
        "kind": "intervention",
        "model": "smollm2-135m",
        "examples": [{"prompt": _CLEAN, "answer": " Mary", "foil": " John"}],
        "interventions": [{"site": "z", "layer": 16, "head": 0, "operation": "scale", "value": 0.0}],
        "metric": {"type": "logit_diff"},
        "top_k": 5,
    },
    "activations": {
        "kind": "activations",
        "model": "smollm2-135m",
        "prompts": [_CLEAN],
        "sites": [
            {"site": "resid_post", "layer": 15, "positions": [-1]},
            {"site": "blocks.20.attn.hook_pattern", "head": 3},
        ],
    },
    "logit_lens": {
        "kind": "logit_lens",
        "model": "smollm2-135m",
        "examples": [{"prompt": _CLEAN, "answer": " Mary", "foil": " John"}],
        "metric": {"type": "logit_diff"},
    },
    "attention": {
        "kind": "attention",
        "model": "smollm2-135m",
        "prompts": [_CLEAN],
        "patterns": [{"layer": 18, "head": 6}],
        "random_tokens": {"sequences": 8, "length": 25, "seed": 0},
    },
    "sae_evaluation": {
        "kind": "sae_evaluation",
        "model": "smollm2-135m",
        "sae": "smollm2-135m-l15-resid-post",
        "prompts": ["The Eiffel Tower is in Paris, and the river that flows past it is the Seine."],
    },
}
