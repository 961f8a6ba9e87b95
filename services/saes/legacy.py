"""`cfg.json` as SAELens wrote it before 6.0: one flat object, read as SAELens reads it today."""

from collections.abc import Mapping
from typing import Any

_RENAMED = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}

_OF_THE_MODEL = (
    "model_name",
    "hook_name",
    "hook_head_index",
    "hook_name_out",
    "prepend_bos",
    "model_from_pretrained_kwargs",
    "lensd",
)


def as_of_6_0(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config in the form of 6.0: what is about the model goes into `metadata`. One of 6.0 comes back as it is.

    The defaults of then: BOS was prepended, the architecture `standard`, and TopK an activation function of it.
    """
    if "metadata" in config or not {"hook_name", "hook_point"} & set(config):
        return dict(config)
    old = {_RENAMED.get(key, key): value for key, value in config.items()}
    old.setdefault("prepend_bos", True)
    reshaped = "hook_z" if "hook_z" in str(old["hook_name"]) else "none"
    normalized = old.get("normalize_activations") or "none"
    arguments = old.get("activation_fn_kwargs")
    k = arguments.get("k") if isinstance(arguments, dict) else None
    topk = old.get("activation_fn") == "topk" and k is not None
    return {
        **{key: value for key, value in old.items() if key not in _OF_THE_MODEL},
        "architecture": "topk" if topk else old.get("architecture", "standard"),
        "k": k if topk else old.get("k"),
        "normalize_activations": "expected_average_only_in" if normalized is True else normalized,
        "reshape_activations": old.get("reshape_activations", reshaped),
        "metadata": {key: old[key] for key in _OF_THE_MODEL if key in old},
    }
