"""Michael Hanna's transcoders of Qwen 3's MLPs: ReLU, one file a layer, what is about all of them in the root."""

import re
from typing import Any

from services.saes.formats.origin import Converted, Format, Origin, Unconvertible, converted

_CONFIG, _RUN, _RUN_MISSPELT = "config.yaml", "wandb-config.yaml", "wanb-config.yaml"
"""The misspelt name is what some of the repositories have."""


def _convert(origin: Origin) -> Converted:
    weights = {name: origin.tensor(name) for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
    more = set(origin.weights) - set(weights)
    if more:
        raise Unconvertible(f"the weights hold {', '.join(sorted(more))}, which no ReLU transcoder has")
    weights["W_enc"] = weights["W_enc"].T
    metadata: dict[str, Any] = {
        "model_name": _model(origin),
        "hook_name": f"blocks.{origin.layer}.mlp.hook_in",
        "hook_name_out": f"blocks.{origin.layer}.hook_mlp_out",
        "context_size": _context(origin),
        "model_from_pretrained_kwargs": {"fold_ln": False},
    }
    return converted("transcoder", weights, metadata)


def _model(origin: Origin) -> str:
    if _CONFIG in origin.said:
        return str(origin.field(_CONFIG, "model_name", str))
    size = re.search(r"qwen3-(\d+(?:\.\d+)?)b", origin.repository)
    if size is None:
        raise Unconvertible(f"neither {_CONFIG} nor the name {origin.repository} says of which model")
    return f"Qwen/Qwen3-{size[1]}B"


def _context(origin: Origin) -> int | None:
    """The rows' length, which the file of the training run calls batch_size."""
    for file in (_RUN, _RUN_MISSPELT):
        if file in origin.said:
            return int(origin.field(file, "batch_size", dict)["value"])
    return None


QWEN_TRANSCODERS = Format("{folder}", _convert, reads=(_CONFIG, _RUN, _RUN_MISSPELT))
