"""The jobs shown in the API's documentation: some of each kind, ready to be sent."""

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
    "patching_features": {
        "kind": "patching",
        "model": "smollm2-135m",
        "method": {"type": "feature_patching", "sae": "smollm2-135m-l15-resid-post", "top_k": 10},
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
    "attribution_to_features": {
        "kind": "attribution",
        "model": "smollm2-135m",
        "method": {"type": "direct_logit_attribution", "sae": "smollm2-135m-l15-resid-post", "top_k": 10},
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
    "features_contrast": {
        "kind": "features",
        "model": "smollm2-135m",
        "sae": "smollm2-135m-l15-resid-post",
        "prompts": ["The Eiffel Tower is in Paris", "The Louvre is in Paris"],
        "contrast": {"baseline": ["The Colosseum is in Rome", "Big Ben is in London"], "score": "max"},
    },
    "features_search": {
        "kind": "features",
        "model": "smollm2-135m",
        "sae": "smollm2-135m-l15-resid-post",
        "prompts": ["The Eiffel Tower is in Paris", "The Colosseum is in Rome"],
        "search": [{"text": " Paris"}, {"prompt": 1, "positions": [-1]}],
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
    "ablation_of_features": {
        "kind": "ablation",
        "model": "smollm2-135m",
        "method": {"type": "feature_ablation", "sae": "smollm2-135m-l15-resid-post", "top_k": 10},
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
    "generation": {
        "kind": "generation",
        "model": "smollm2-135m",
        "prompts": ["The weather today is"],
        "max_new_tokens": 24,
        "steering": [{"type": "feature", "sae": "smollm2-135m-l15-resid-post", "index": 2280}],
        "strengths": [0.25, 0.5],
        "unit": "mean_norm",
    },
    "generation_without_features": {
        "kind": "generation",
        "model": "smollm2-135m",
        "prompts": ["The weather today is"],
        "max_new_tokens": 24,
        "steering": [
            {"type": "feature", "sae": "smollm2-135m-l15-resid-post", "index": 2280, "operation": "project_out"},
            {"type": "feature", "sae": "smollm2-135m-l15-resid-post", "index": 8, "operation": "ablate"},
        ],
    },
    "direction": {
        "kind": "direction",
        "model": "smollm2-135m",
        "positive": ["I love this film, it is wonderful", "What a lovely day, I am so happy"],
        "negative": ["I hate this film, it is terrible", "What an awful day, I am so sad"],
        "layers": [10, 15, 20],
    },
}

BATCH = (
    {"custom_id": "eiffel", "job": JOBS["features"]},
    {"custom_id": "mary-and-john", "job": JOBS["attribution"]},
)
"""The lines of a small batch."""
