"""How fast this machine runs a model: the calibration of the cost unit."""

import statistics
import time

import torch

from services.models.load import LoadedModel

_ROWS, _LENGTH, _REPEATS = 8, 32, 3


def token_layers_per_second(model: LoadedModel) -> float:
    """Token-layers (one position through one block) per second in a batch of a usual size; the median of three."""
    tokens = torch.zeros((_ROWS, _LENGTH), dtype=torch.long, device=model.device)
    seconds = []
    with torch.no_grad():
        for _ in range(1 + _REPEATS):
            started = time.perf_counter()
            float(model.bridge.original_model(tokens, logits_to_keep=1).logits.sum())
            seconds.append(time.perf_counter() - started)
    return _ROWS * _LENGTH * model.facts.layers / statistics.median(seconds[1:])
